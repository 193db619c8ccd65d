"""Concept sessions whose frames are not finished: what is computed before is shown."""

import itertools

import numpy as np
import pytest

import runtime
from helpers import numpy_sam3
from helpers.numpy_sam3 import picture
from runtime import Concept
from runtime.models.sam3 import frame_queue
from runtime.tracking import association

RED, GREEN = Concept(tokens=[1]), Concept(tokens=[2])
FRAMES = [picture(0, 3) | picture(1, channel=1)] * 6
LAST = 4


class Failing:
    """A stage that fails in the call that `fails` counts down to."""

    countdown, error = -1, KeyboardInterrupt

    def __init__(self, stage):
        self.stage, self.spec = stage, stage.spec

    def run(self, **arrays):
        Failing.countdown -= 1
        if Failing.countdown == 0:
            raise Failing.error()
        self.stage.run(**arrays)


@pytest.fixture(scope="module")
def engine(numpy_sam3_bundle):
    engine = numpy_sam3.load(numpy_sam3_bundle)
    engine.instrument(Failing)
    return engine


@pytest.fixture(autouse=True)
def works():
    Failing.countdown = -1


def same(a, b):
    assert (a.frame_index, a.object_ids, a.prompt_ids, a.time) == (b.frame_index, b.object_ids, b.prompt_ids, b.time)
    assert np.array_equal(a.masks, b.masks) and np.array_equal(a.scores, b.scores)


def push(session, frames):
    return [result for t, frame in enumerate(frames) for result in session.push(frame, time=float(t))]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("late", [True, False])
def test_finished_frames_are_shown_whatever_stops_the_next_one(engine, late, error):
    """In every call of a stage of a frame with an old and a new concept. The frame itself is shown if it is decided."""
    Failing.error = error
    for call in itertools.count(1):
        with engine.session([RED], temporal_disambiguation=late) as session:
            found = push(session, FRAMES[:LAST])
            session.add_concept(GREEN)
            Failing.countdown = call
            try:
                session.push(FRAMES[LAST], time=float(LAST))
            except error:
                found += session.flush()
            else:
                break
            assert session.flush() == [] and session._pool.in_use == 0
            with pytest.raises(runtime.UserError, match="because a frame was not finished"):
                session.push(FRAMES[LAST])
        Failing.countdown = -1
        with engine.session([RED], temporal_disambiguation=late) as session:
            expected = push(session, FRAMES[:LAST])
            if decided := len(found) > LAST:
                session.add_concept(GREEN)
                expected += session.push(FRAMES[LAST], time=float(LAST))
            expected += session.flush()
        for result, wanted in zip(found, expected, strict=True):
            same(result, wanted)
    assert decided and call > 8  # stages per frame, at least


@pytest.mark.parametrize("late", [True, False])
def test_a_correction_that_is_stopped_loses_no_frame(engine, late):
    mask = runtime.Mask(np.ones((24, 40), bool))
    for call in (1, 2):
        Failing.error, Failing.countdown = KeyboardInterrupt, 0
        with engine.session([RED], temporal_disambiguation=late) as session:
            found = push(session, FRAMES[:LAST])
            Failing.countdown = call
            with pytest.raises(KeyboardInterrupt):
                session.correct({0: mask})
            found += session.flush()
        assert [result.frame_index for result in found] == list(range(LAST))


@pytest.mark.parametrize("what", ["boxes_and_areas", "Result"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_results_are_not_lost_while_they_are_made(engine, monkeypatch, what, call):
    """An interrupt when frames are shown, or joined, leaves them to the next flush."""
    module = association if what == "boxes_and_areas" else frame_queue
    made, calls = getattr(module, what), itertools.count(1)

    def interrupted(*args, **kwargs):
        if next(calls) == call:
            raise KeyboardInterrupt
        return made(*args, **kwargs)

    with engine.session([RED, GREEN]) as session:
        push(session, FRAMES)
        monkeypatch.setattr(module, what, interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.flush()
        assert [result.frame_index for result in session.flush()] == list(range(len(FRAMES)))


def test_a_session_that_the_caller_closed_shows_nothing_more(engine):
    session = engine.session([RED])
    session.push(FRAMES[0])
    session.close()
    with pytest.raises(runtime.UserError, match="closed"):
        session.flush()
