"""Iterations that are left, closed, interleaved or interrupted: no memory is lost, and nothing is wrong silently."""

import numpy as np
import pytest

import runtime
from helpers import toy_samwise
from helpers.samwise_schedule import A, B, frames
from runtime import Points

WINDOW = toy_samwise.WINDOW
CLICK = Points([(10, 8)], [1])
N = 3 * WINDOW + 2


@pytest.fixture(scope="module")
def engine(toy):
    return runtime.load(toy)


@pytest.fixture(scope="module")
def prompts(toy_sam2_bundle):
    return runtime.load(toy_sam2_bundle)


def text(engine):
    return engine.session([runtime.Text(tokens=A), runtime.Text(tokens=B)], logits=True)


@pytest.fixture(scope="module")
def right(engine):
    """Results of an undisturbed text session."""
    with text(engine) as session:
        return list(session.stream(frames(N)))


def same(have, want):
    assert [r.frame_index for r in have] == [r.frame_index for r in want]
    for a, b in zip(have, want, strict=True):
        assert a.object_ids == b.object_ids and (a.masks == b.masks).all()
        np.testing.assert_allclose(a.low_res_logits, b.low_res_logits, rtol=0, atol=1e-6)


# -- text sessions --------------------------------------------------------------------------------------------------


def broken_off(results):
    for _ in results:
        break


def thrown(results):
    next(results)
    with pytest.raises(KeyError):
        results.throw(KeyError())


LEAVE = {
    "break": broken_off,
    "next": next,
    "close": lambda results: (next(results), results.close()),
    "throw": thrown,
    "kept": lambda results: next(results) and results,
}


@pytest.mark.parametrize("taken", [1, WINDOW - 1, WINDOW])
@pytest.mark.parametrize("how", LEAVE)
def test_the_clip_of_a_loop_that_is_left_is_finished(engine, right, how, taken):
    """The frames that the loop took are in the memory of those that are pushed after it."""
    clip = frames(N)
    with text(engine) as session:
        results = session.stream(clip)
        same([next(results) for _ in range(taken - 1)], right[: taken - 1])
        left = LEAVE[how](results)
        same([r for frame in clip[WINDOW:] for r in session.push(frame)] + session.flush(), right[WINDOW:])
        del left


@pytest.mark.parametrize("again", ["stream", "push", "flush"])
def test_an_iterator_goes_on_after_other_clips(engine, right, again):
    clip, rest = frames(N), slice(WINDOW, None)
    with text(engine) as session:
        first = session.stream(clip[:WINDOW])
        early = [next(first)]
        if again == "stream":
            later = list(session.stream(clip[rest]))
        else:
            later = [r for frame in clip[rest] for r in session.push(frame)] + session.flush()
            assert session.flush() == []
        same(early + list(first) + later, right)


def test_two_iterators_take_turns(engine):
    """Each result is returned once; a clip has the frames in the order in which they were taken."""
    clip, order = frames(4 * WINDOW), []

    def taken(numbers):
        for number in numbers:
            order.append(number)
            yield clip[number]

    with text(engine) as session:
        iterators = [session.stream(taken(range(start, len(clip), 2))) for start in (0, 1)]
        found = []
        while iterators:
            for iterator in list(iterators):
                result = next(iterator, None)
                found.append(result)
                if result is None:
                    iterators.remove(iterator)
    found = sorted((r for r in found if r is not None), key=lambda r: r.frame_index)
    with text(engine) as session:  # the same frames in the same clips
        want = [r for at in range(0, len(clip), WINDOW) for r in [*session.stream(clip[order[at : at + WINDOW]])]]
    same(found, want)


def test_pushes_and_flushes_inside_the_loop(engine):
    """A frame that is pushed inside the loop belongs to the clip that fills up, whoever completes it."""
    clip = frames(N)
    with text(engine) as session:
        found, pushed = [], []
        for result in session.stream(clip[: 2 * WINDOW]):
            found.append(result)
            if result.frame_index == 1:
                pushed += session.push(clip[2 * WINDOW]) + session.flush()
    assert [r.frame_index for r in pushed] == [WINDOW]
    assert [r.frame_index for r in found] == [*range(WINDOW), *range(WINDOW + 1, 2 * WINDOW + 1)]
    with text(engine) as session:
        parts = (clip[:WINDOW], clip[2 * WINDOW : 2 * WINDOW + 1], clip[WINDOW : 2 * WINDOW])
        same(
            sorted(found + pushed, key=lambda r: r.frame_index), [r for part in parts for r in [*session.stream(part)]]
        )


@pytest.mark.parametrize("at", [0, 2, WINDOW, WINDOW + 1, N])
def test_frames_that_fail_midway_leave_a_session_that_goes_on(engine, right, at):
    clip = frames(N)

    def failing():
        yield from clip[:at]
        raise OSError("the camera is gone")

    found = []
    with text(engine) as session:
        with pytest.raises(OSError, match="camera"):
            for result in session.stream(failing()):
                found.append(result)
        found += [r for frame in clip[at:] for r in session.push(frame)] + session.flush()
    same(found, right)


def test_a_bad_frame_in_a_stream_loses_no_other(engine, right):
    clip = list(frames(N))
    with text(engine) as session:
        with pytest.raises(runtime.VideoError, match="frame 2"):
            list(session.stream([*clip[:2], clip[2][:5]]))
        same(list(session.stream(clip[2:])), right)


# -- closing --------------------------------------------------------------------------------------------------------


def iterations(engine, prompts):
    """(session, iterator) of each kind that has results left after the first."""
    session, live, video = text(engine), prompts.live(), prompts.video(frames(6))
    video.add_points(0, 1, CLICK.points, CLICK.labels)
    yield session, session.stream(frames(N))
    yield live, live.stream(frames(6), {0: {1: CLICK}})
    yield video, video.propagate()


@pytest.mark.parametrize("kind", range(3), ids=["text", "live", "video"])
@pytest.mark.parametrize("close", ["session", "engine", "with"])
def test_closing_inside_the_loop_says_so(engine, prompts, kind, close):
    session, results = list(iterations(engine, prompts))[kind]
    next(results)
    if close == "with":
        with session:
            pass
    else:
        (session if close == "session" else [engine, prompts, prompts][kind]).close()
    with pytest.raises(runtime.UserError, match=r"^this session is closed; open another one$"):
        list(results)
    session.close()


def test_closing_after_the_last_result_ends_the_loop(engine, prompts):
    for session, results in iterations(engine, prompts):
        last = N - 1 if isinstance(session, runtime.TextSession) else 5
        for result in results:
            if result.frame_index == last:
                session.close()


# -- computation that fails or is interrupted -----------------------------------------------------------------------


class Failing:
    """A stage that raises at one call."""

    def __init__(self, stage, at, error):
        self.stage, self.spec, self.left, self.error = stage, stage.spec, at, error

    def run(self, **arrays):
        self.left -= 1
        if self.left == 0:
            raise self.error
        self.stage.run(**arrays)


def fail(monkeypatch, engine, stage, at, error):
    monkeypatch.setattr(engine.stages[stage], "stage", Failing(engine.stages[stage].stage, at, error))


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, runtime.InternalError])
@pytest.mark.parametrize("stage, at", [("hiera_1", 3), ("mask_decoder", 2), ("memory_encoder", 6)])
def test_a_text_session_that_lacks_a_frame_is_closed(engine, monkeypatch, stage, at, error):
    fail(monkeypatch, engine, stage, at, error("stop"))
    session = text(engine)
    results = session.stream(frames(N))
    with pytest.raises(error, match="stop"):
        list(results)
    for call in (lambda: session.push(frames(1)[0]), session.flush, lambda: list(session.stream(frames(1)))):
        with pytest.raises(runtime.UserError, match=f"not finished .{error.__name__}.*; open another one"):
            call()
    assert engine.networks["samwise"].maskmem_pool.in_use == 0


@pytest.mark.parametrize("kind, stage", [("text", "neck"), ("text", "mask_decoder"), ("live", "prompt_decoder")])
def test_closing_while_a_frame_is_computed_by_the_same_thread(engine, prompts, monkeypatch, kind, stage):
    """As a signal handler or a finalizer may: the lock does not block, and the memory goes back once."""

    class Closing(Failing):
        def run(self, **arrays):
            self.stage.run(**arrays)
            self.left -= 1
            if self.left == 0:
                session.close()

    used = engine if kind == "text" else prompts
    session, results = list(iterations(engine, prompts))[kind == "live"]
    monkeypatch.setattr(used.stages[stage], "stage", Closing(used.stages[stage].stage, 3, None))
    with pytest.raises(runtime.UserError, match="closed"):
        list(results)
    for network in used.networks.values():
        pools = [network.maskmem_pool, network.obj_ptr_pool] if kind == "text" else network._pools.values()
        assert [pool.in_use for pool in pools] == [0] * len(pools)


LIVE_PROMPTS = [{1: CLICK}, None, {2: runtime.Box((3, 3, 12, 12)), 1: Points([(3, 3)], [1])}, None, None]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("frame", range(5))
@pytest.mark.parametrize("stage", ["image_encoder", "prompt_decoder", "prompt_memory_encoder"])
def test_a_live_frame_that_was_interrupted_may_be_pushed_again(prompts, monkeypatch, stage, frame, error):
    clip = frames(5)

    def run(disturbed):
        with prompts.live(logits=True) as session:
            found = []
            for number in range(5):
                if disturbed and number == frame:
                    with monkeypatch.context() as patch:
                        fail(patch, prompts, stage, 1, error())
                        with pytest.raises(error):
                            session.push(clip[number], {9: CLICK, **(LIVE_PROMPTS[number] or {})})
                    assert 9 not in session.object_ids
                    with pytest.raises(runtime.PromptError, match="no frame to correct"):
                        session.correct({1: CLICK})
                found += session.push(clip[number], LIVE_PROMPTS[number])
            return [*found, session.correct({2: Points([(4, 4)], [0])})]

    same(run(True), run(False))


def test_a_correction_that_was_interrupted_closes_the_session(prompts, monkeypatch):
    session = prompts.live()
    session.push(frames(1)[0], {1: CLICK})
    fail(monkeypatch, prompts, "prompt_memory_encoder", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        session.correct({1: Points([(3, 3)], [1])})
    with pytest.raises(runtime.UserError, match="not finished"):
        session.push(frames(1)[0])


# -- known videos ---------------------------------------------------------------------------------------------------


def known(prompts):
    video = prompts.video(frames(9), logits=True)
    video.add_points(2, 1, CLICK.points, CLICK.labels)
    video.add_box(4, 2, (3, 3, 12, 12))
    return video


@pytest.fixture(scope="module")
def propagated(prompts):
    with known(prompts) as video:
        return list(video.propagate())


@pytest.mark.parametrize("how", LEAVE)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_propagation_that_is_left_may_be_started_again(prompts, propagated, how, reverse):
    with known(prompts) as video:
        left = LEAVE[how](video.propagate(reverse=reverse))
        same(list(video.propagate()), propagated)
        del left


def test_two_propagations_take_turns(prompts, propagated):
    with known(prompts) as video:
        pairs = list(zip(video.propagate(), video.propagate(), strict=True))
    for number in (0, 1):
        same([pair[number] for pair in pairs], propagated)


@pytest.mark.parametrize("stage", ["image_encoder", "memory_attention", "prompt_decoder", "prompt_memory_encoder"])
def test_a_propagation_that_was_interrupted_may_be_started_again(prompts, propagated, monkeypatch, stage):
    with known(prompts) as video:
        with monkeypatch.context() as patch:
            fail(patch, prompts, stage, 3, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                list(video.propagate())
        same(list(video.propagate()), propagated)
    assert prompts.networks["sam2"].memory_pool().in_use == 0


def test_prompts_inside_the_loop_count_from_the_next_propagation(prompts, propagated):
    with known(prompts) as video:
        found = []
        for result in video.propagate():
            found.append(result)
            if result.frame_index == 5:
                video.add_points(8, 1, [(4, 4)], [1])
        same(found[:-1], propagated[:-1])
