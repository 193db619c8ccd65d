"""Calls within a call of the same thread, and processes that are forked during a call: refused, never wrong."""

import functools
import os
import signal
import sys
import threading

import numpy as np
import pytest

import runtime
from helpers import numpy_sam3, public_methods, toy_refersam
from helpers.waiting import PATIENCE
from runtime import Points

A = runtime.Text(tokens=[0, 5, 2])
CLICK = Points([(10, 8)], [1])
OPTIONS = {"points_per_side": 2, "pred_iou_thresh": -10.0, "stability_score_thresh": 0.0}
WITHIN = "in the middle of another call of this thread"


def clip(seed=0, count=6):
    return np.random.default_rng(seed).integers(40, 255, (count, 20, 30, 3), dtype=np.uint8)


class Hooked:
    """A stage that calls `hook` before and after each run."""

    hook = None

    def __init__(self, stage):
        self.stage, self.spec = stage, stage.spec

    def run(self, **arrays):
        for step in (lambda: self.stage.run(**arrays), lambda: None):
            if Hooked.hook is not None:
                Hooked.hook()
            step()


@pytest.fixture(scope="module")
def engines(toy, toy_sam2_bundle, numpy_sam3_bundle, tmp_path_factory):
    folder = toy_refersam.build(tmp_path_factory.mktemp("bundles") / "refersam")
    loaded = {"text": runtime.load(toy), "prompts": runtime.load(toy_sam2_bundle), "image": runtime.load(folder)}
    loaded["concepts"] = numpy_sam3.load(numpy_sam3_bundle)
    for engine in loaded.values():
        engine.instrument(Hooked)
    return loaded


@pytest.fixture(autouse=True)
def no_hook():
    yield
    Hooked.hook = None


def text(engines):
    with engines["text"].session([A], window=2) as session:
        return [r for frame in clip(count=3) for r in session.push(frame)] + session.flush()


def text_streamed(engines):
    with engines["text"].session([A], window=2) as session:
        return list(session.stream(clip()))


def text_on_an_image(engines):
    return [engines["text"].image(clip()[0]).refer([A])]


def live(engines):
    with engines["prompts"].live() as session:
        found = list(session.stream(clip(), {0: {1: CLICK}}))
        return [*found, session.correct({1: Points([(4, 4)], [0])})]


def video(engines):
    with engines["prompts"].video(clip()) as session:
        session.add_points(2, 1, CLICK.points, CLICK.labels)
        return [*session.propagate(), session.add_box(5, 2, (3, 3, 12, 12))]


def predict(engines):
    return [engines["prompts"].image(clip()[0]).predict([(10, 8)], [1])]


def everything(engines):
    return engines["prompts"].image(clip()[0]).segment_all(**OPTIONS)


def refer(engines):
    return [engines["image"].image(clip()[0]).refer([A])]


CALLS = [(text, text), (text_streamed, text), (text_on_an_image, text), (refer, refer)]
CALLS += [(outer, inner) for outer in (live, video, predict, everything) for inner in (live, video, predict)]


def masks(results):
    return [np.asarray(r.mask if hasattr(r, "mask") else r.masks) for r in results]


def same(have, want):
    return len(have) == len(want) and all((a == b).all() for a, b in zip(have, want, strict=True))


@pytest.mark.parametrize("how", ["callback", "signal"])
@pytest.mark.parametrize("outer, inner", CALLS)
def test_a_call_within_a_call_is_refused(engines, outer, inner, how):
    """The call that runs has its right results when the refusal is caught, and the engine works afterwards."""
    want, refusals = masks(outer(engines)), []

    def call(*_):
        if len(refusals) < 3:
            try:
                inner(engines)
            except runtime.UserError as error:
                refusals.append(str(error))

    old = signal.signal(signal.SIGWINCH, call)  # one that is ignored by default, so that a late one ends nothing
    try:
        Hooked.hook = call if how == "callback" else lambda: signal.raise_signal(signal.SIGWINCH)
        assert same(masks(outer(engines)), want)
    finally:
        Hooked.hook = None
        signal.signal(signal.SIGWINCH, old)
    assert len(refusals) == 3 and all(WITHIN in refusal for refusal in refusals)
    assert same(masks(outer(engines)), want)


def test_every_public_method_is_refused_within_a_call(engines):
    """But `close`, which takes effect after the call."""
    calls = public_methods.calls(engines, clip())
    assert set(calls) == public_methods.names()
    for name, call in calls.items():
        if name.endswith(".close"):
            continue
        for engine in engines.values():  # within a call of every engine
            call = functools.partial(engine._lock.run, call)
        with pytest.raises(runtime.UserError, match=WITHIN):
            call()


@pytest.mark.parametrize("what", ["session", "engine"])
def test_closing_within_a_call_takes_effect_after_it(engines, what):
    """As a handler of SIGTERM does it: the frame is finished, the next one is refused, nothing is lost."""
    want = masks(text_streamed(engines))
    session, found = engines["text"].session([A], window=2), []
    Hooked.hook = session.close if what == "session" else engines["text"].close
    with pytest.raises(runtime.UserError, match="this session is closed; open"):
        for result in session.stream(clip()):
            found.append(result)
    Hooked.hook = None
    assert same(masks(found), want[: len(found)])
    assert same(masks(text_streamed(engines)), want)


def test_generators_of_frames_may_call_the_engine(engines):
    """They run between calls."""

    def frames():
        for frame in clip():
            engines["prompts"].image(frame).predict([(10, 8)], [1])
            text_on_an_image(engines)
            yield frame

    for engine, kind in (("text", lambda e: e.session([A], window=2)), ("prompts", lambda e: e.live())):
        with kind(engines[engine]) as session:
            want = masks(session.stream(clip()))
        with kind(engines[engine]) as session:
            assert same(masks(session.stream(frames())), want)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_the_engine_free(engines, interrupt):
    want = masks(text_streamed(engines))

    def raises():
        raise interrupt

    Hooked.hook = raises
    with pytest.raises(interrupt):
        text_streamed(engines)
    Hooked.hook = None
    assert same(masks(text_streamed(engines)), want)


# -- forks ----------------------------------------------------------------------------------------------------------

forks = pytest.mark.skipif(sys.platform == "win32", reason="processes are not forked")
parallel = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")


def forked(job):
    """Run a job in a forked process; return its exit code: 0 it is true, 1 it is false, -14 it did not end."""
    child = os.fork()
    if not child:
        code = 2
        try:
            signal.alarm(int(PATIENCE))
            code = 0 if job() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@forks
@parallel
@pytest.mark.parametrize("call", [text_streamed, live, video, predict])
def test_a_fork_while_another_thread_computes(engines, call):
    """The new process is refused instead of waiting for a thread that it does not have; the old one goes on."""
    want, computes, go_on = masks(call(engines)), threading.Event(), threading.Event()

    def hook():
        computes.set()
        go_on.wait(PATIENCE)

    def refused():
        Hooked.hook = None
        for _ in range(2):
            with pytest.raises(runtime.UserError, match="forked while another thread computed"):
                call(engines)
        for engine in engines.values():
            engine.close()
        return True

    Hooked.hook, found = hook, []
    thread = threading.Thread(target=lambda: found.extend(masks(call(engines))), daemon=True)
    thread.start()
    assert computes.wait(PATIENCE)
    code = forked(refused)
    Hooked.hook = None
    go_on.set()
    thread.join(PATIENCE)
    assert code == 0 and same(found, want)


@forks
@parallel
def test_forks_between_calls_and_by_the_thread_that_computes(engines):
    want, codes = masks(live(engines)), []

    def right():
        Hooked.hook = None
        return same(masks(live(engines)), want)

    assert forked(right) == 0

    def hook():
        Hooked.hook = None
        codes.append(os.fork())

    Hooked.hook = hook
    found = same(masks(live(engines)), want)
    if codes == [0]:
        os._exit(0 if found and right() else 1)
    assert found and os.waitstatus_to_exitcode(os.waitpid(codes[0], 0)[1]) == 0
