"""Several threads on one engine: the results are those of one thread, and no call waits for the caller's own code."""

import contextlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import runtime
from helpers import numpy_sam3, public_methods, toy_refersam
from helpers.waiting import PATIENCE
from runtime import Box, Concept, Points

NANO = Path(__file__).resolve().parents[2] / "engines" / "nano"
A, B = runtime.Text(tokens=[0, 5, 2]), runtime.Text(tokens=[0, 9, 7, 2])
CLICK = Points([(10, 8)], [1])
RED, GREEN, BLUE = (Concept(tokens=[token]) for token in (1, 2, 3))


def clip(seed, count=9):
    return np.random.default_rng(seed).integers(40, 255, (count, 20, 30, 3), dtype=np.uint8)


class Slow:
    """A stage that lets other threads run before and after each call."""

    def __init__(self, stage):
        self.stage, self.spec = stage, stage.spec

    def run(self, **arrays):
        time.sleep(1e-5)
        self.stage.run(**arrays)
        time.sleep(1e-5)


@pytest.fixture(scope="module")
def engines(toy, toy_sam2_bundle, numpy_sam3_bundle, tmp_path_factory):
    image_bundle = toy_refersam.build(tmp_path_factory.mktemp("bundles") / "refersam")
    loaded = {
        "text": runtime.load(toy, max_objects=64),
        "prompts": runtime.load(toy_sam2_bundle, max_objects=64),
        "image": runtime.load(image_bundle),
        "concepts": numpy_sam3.load(numpy_sam3_bundle),
    }
    for engine in loaded.values():
        engine.instrument(Slow)
    return loaded


@pytest.fixture(scope="module")
def nano():
    """An engine with real stages, one of whose networks follows sentences, and one points."""
    engine = runtime.load(NANO, threads=1)
    return {"text": engine, "prompts": engine}


# -- one request of each kind; returns arrays -----------------------------------------------------------------------


def text_pushed(engine, seed):
    with engine["text"].session([A, B], logits=True) as session:
        return [r for frame in clip(seed) for r in session.push(frame)] + session.flush()


def text_streamed(engine, seed):
    with engine["text"].session([B], window=2, logits=True) as session:
        return list(session.stream(clip(seed)))


def text_on_an_image(engine, seed):
    return [engine["text"].image(clip(seed)[0]).refer([A, B], logits=True)]


def live(engine, seed):
    with engine["prompts"].live(logits=True) as session:
        found = list(session.stream(clip(seed), {0: {1: CLICK}, 3: {2: Box((3, 3, 12, 12))}}))
        return [*found, session.correct({1: Points([(4, 4)], [0])})]


def video(engine, seed):
    with engine["prompts"].video(clip(seed), logits=True) as session:
        first = session.add_points(4, 1, CLICK.points, CLICK.labels)
        return [first, *session.propagate(), *session.propagate(reverse=True)]


def predict(engine, seed):
    return [engine["prompts"].image(clip(seed)[0]).predict([(10, 8)], [1])]


def everything(engine, seed):
    options = {"points_per_side": 3, "pred_iou_thresh": -10.0, "stability_score_thresh": 0.0}
    return engine["prompts"].image(clip(seed)[0]).segment_all(**options)


def refer(engine, seed):
    sentences = [runtime.Text(tokens=[0, 5 + seed % 3, 2])]
    return [engine["image"].image(clip(seed)[0]).refer(sentences, logits=True)]


def detect(engine, seed):
    return engine["concepts"].image(clip(seed)[0]).detect([RED, GREEN], logits=True, threshold=0.1)


def concepts(engine, seed):
    """Two concepts, one of which comes later, and a correction."""
    dark, seen = clip(seed) // 3, numpy_sam3.picture(seed % 4, 3 - seed % 4, size=(20, 30))
    frames = np.maximum(dark, [seen, *[seen + seen[..., ::-1]] * 8])
    with engine["concepts"].session([RED], logits=True) as session:
        found = [r for frame in frames[:4] for r in session.push(frame)]
        session.add_concept(BLUE)
        return [*found, session.correct({0: CLICK}), *session.stream(frames[4:])]


REQUESTS = [text_pushed, text_streamed, text_on_an_image, live, video, predict, everything, refer, detect, concepts]


def values(results):
    """Every array and number of results, in order."""
    return [np.asarray(getattr(r, name)) for r in results for name in r.__slots__ if getattr(r, name) is not None]


def run(jobs):
    """Run every job in its own thread, all at once; return their results."""
    found, start = {}, threading.Barrier(len(jobs))

    def work(number, job):
        start.wait()
        try:
            found[number] = job()
        except BaseException as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == len(jobs), "a thread does not end"
    return [found[number] for number in range(len(jobs))]


def compare(engines, kinds, atol):
    requests = [(kind, seed) for seed, kind in enumerate(kinds)]
    expected = [values(kind(engines, seed)) for kind, seed in requests]
    found = run([lambda kind=kind, seed=seed: values(kind(engines, seed)) for kind, seed in requests])
    for (kind, _), have, want in zip(requests, found, expected, strict=True):
        assert not isinstance(have, BaseException), (kind.__name__, have)
        for a, b in zip(have, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=kind.__name__)


@pytest.mark.parametrize("kinds", [REQUESTS, *([kind] * 4 for kind in REQUESTS)], ids=lambda k: k[-1].__name__)
def test_threads_get_the_results_of_one_thread(engines, kinds):
    compare(engines, kinds, atol=1e-6)  # the rows of a toy are not aligned, and ONNX Runtime rounds by alignment


def test_threads_on_nano_get_the_bits_of_one_thread(nano):
    compare(nano, [text_pushed, text_streamed, text_on_an_image, live, video, predict], atol=0)


def test_one_session_in_two_threads(engines):
    """Frames are taken in the order of arrival, and each result is returned once."""
    frame = clip(0)[0]
    for open_session in (lambda: engines["text"].session([A]), lambda: engines["prompts"].live()):
        with open_session() as session:
            want = list(session.stream([frame] * 20))
        with open_session() as session:
            found = [r for part in run([lambda: [r for _ in range(10) for r in session.push(frame)]] * 2) for r in part]
            found = sorted(found, key=lambda r: r.frame_index) + session.flush()
        assert [r.frame_index for r in found] == list(range(20))
        for have, expected in zip(found, want, strict=True):
            assert (have.masks == expected.masks).all()
            np.testing.assert_allclose(have.scores, expected.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["text", "live", "video"])
def test_closing_while_another_thread_computes(engines, kind):
    engine, ready = engines["text" if kind == "text" else "prompts"], threading.Event()
    session = {"text": lambda: engine.session([A]), "live": engine.live, "video": lambda: engine.video(clip(0))}[kind]()

    def stream():
        if kind == "video":
            session.add_points(0, 1, CLICK.points, CLICK.labels)
        while True:
            for _ in session.propagate() if kind == "video" else session.stream(clip(1)):
                ready.set()

    def close():
        ready.wait(PATIENCE)
        session.close()

    error, _ = run([stream, close])
    assert isinstance(error, runtime.UserError) and "closed" in str(error)
    assert other_thread(lambda: engine.close() or True)


def other_thread(job, seconds=PATIENCE):
    """Return the result of a job that runs in another thread meanwhile, or None if it does not end in time."""
    found = []
    thread = threading.Thread(target=lambda: found.append(job()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def test_no_lock_is_held_while_the_caller_has_a_result(engines):
    """A consumer that waits for another request, and one that uses the session in its loop, do not block."""
    for kind in (text_streamed, live, video):
        text, prompts = engines["text"], engines["prompts"]
        with text.session([A]) as session, prompts.live() as other, prompts.video(clip(0)) as known:
            known.add_points(0, 1, CLICK.points, CLICK.labels)
            for results in (session.stream(clip(1)), other.stream(clip(1), {0: {1: CLICK}}), known.propagate()):
                next(results)
                assert other_thread(lambda kind=kind: kind(engines, 3)), kind.__name__
                assert kind(engines, 3)
                next(results)


@pytest.mark.parametrize("kind", ["frames", "text", "live", "video"])
@pytest.mark.parametrize("here", ["here", "in another thread"])
def test_one_generator_in_two_calls(engines, kind, here):
    """The second call is refused, the first one goes on."""
    frame, reading, go_on, found = clip(0)[0], threading.Event(), threading.Event(), []

    def frames():
        yield frame
        reading.set()
        if here == "here":
            found.append(take())
        else:
            assert go_on.wait(PATIENCE)
        yield frame

    def take():
        with pytest.raises(runtime.UserError, match="this iterator; take them in|reads this generator now; give"):
            list(other.stream(given)) if kind == "frames" else next(results)
        return True

    given = frames()
    text, prompts = engines["text"], engines["prompts"]
    with text.session([A], window=1) as session, prompts.live() as other, prompts.video(clip(0, 2)) as known:
        known.add_points(0, 1, CLICK.points, CLICK.labels)
        if kind == "video":
            known._step, step = lambda *args: (list(given), step(*args))[1], known._step
        results = {"live": lambda: other.stream(given), "video": known.propagate}.get(
            kind, lambda: session.stream(given)
        )()
        if here == "here":
            assert len(list(results)) == 2
        else:
            thread = threading.Thread(target=lambda: found.extend(results), daemon=True)
            thread.start()
            assert reading.wait(PATIENCE) and take()
            go_on.set()
            thread.join(PATIENCE)
            assert len(found) == 2


def test_reading_while_another_thread_adds_and_removes(engines):
    """Reading does not wait for a frame that is computed, so concepts may come and go in between."""
    with engines["concepts"].session([RED]) as session:

        class Followed(type(session._concepts[1])):
            @property
            def concept(self):
                other_thread(lambda: session.add_concept(GREEN))
                return RED

            @property
            def object_ids(self):
                other_thread(lambda: session.add_concept(GREEN))
                return [0]

        session._concepts[1].__class__ = Followed
        assert session.object_ids == (0,) and session.concepts == {1: RED, 2: GREEN}


def test_every_method_takes_the_lock(engines):
    calls = public_methods.calls(engines, clip(0))
    assert set(calls) == public_methods.names()
    for name, call in calls.items():
        done = threading.Event()
        thread = threading.Thread(target=lambda call=call, done=done: (call(), done.set()), daemon=True)
        with contextlib.ExitStack() as held:
            for engine in engines.values():
                held.enter_context(engine._lock._lock)
            thread.start()
            assert not done.wait(0.02), f"{name} does not wait"
        assert done.wait(PATIENCE), f"{name} does not end"
