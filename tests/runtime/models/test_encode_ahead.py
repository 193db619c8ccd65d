"""Clips that are encoded on a second stream, on a fake driver that runs it early, late, or in turns with the other."""

from collections import Counter

import numpy as np
import pytest

import runtime
from helpers.fake_cuda import FakeCudaBackend
from helpers.samwise_schedule import A, B, frames
from helpers.toy_samwise import WINDOW
from runtime.bundle.bundle import choose

NAMES = ("masks", "low_res_logits", "score_logits", "boxes", "frame_index")
CLIPS = 5
SECOND = ["early", "between", "late"]


def text(*tokens):
    return [runtime.Text(tokens=t) for t in tokens]


def load(toy, second="early", graphs="auto"):
    engine = runtime.Engine(choose(toy), FakeCudaBackend(), graphs=graphs)
    engine.backend.device.driver.second_runs = second
    return engine


def require_equal(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        for name in NAMES:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize(
    "objects, options",
    [(1, {}), (2, {"decode_ahead": True}), (2, {"window": 2}), (1, {"reference_quirks": True, "decode_ahead": True})],
)
def test_every_bit_is_that_of_clips_encoded_one_by_one(toy, second, objects, options):
    engine, video = load(toy, second), frames(CLIPS * WINDOW + 1, seed=5)
    calls = engine.backend.device.driver.calls
    prompts = text(A, B)[:objects]
    with engine.session(prompts, logits=True, **options) as session:
        expected = list(session.stream(video))
    with engine.session(prompts, logits=True, encode_ahead=True, **options) as session:
        require_equal(list(session.stream(video)), expected)
    assert calls["beside"] > 2 * WINDOW


@pytest.mark.parametrize("backend", ["cpu", "without graphs"])
def test_where_nothing_can_overlap_results_come_at_once(toy, backend):
    engine = runtime.load(toy, backend="ort") if backend == "cpu" else load(toy, graphs="off")
    video = frames(2 * WINDOW)
    with engine.session(text(A), logits=True) as session:
        expected = list(session.stream(video))
    with engine.session(text(A), logits=True, encode_ahead=True) as session:
        found = [session.push(frame) for frame in video]
    assert [len(results) for results in found] == [*[0] * (WINDOW - 1), WINDOW] * 2
    require_equal([result for results in found for result in results], expected)


@pytest.mark.parametrize("second", SECOND)
def test_results_come_a_clip_later_and_a_flush_gives_the_rest(toy, second):
    engine, video = load(toy, second), frames(4 * WINDOW + 2)
    with engine.session(text(A, B), logits=True) as session:
        expected = [session.push(frame) for frame in video[: 2 * WINDOW + 2]]
        expected.append(session.flush())
        expected += [session.push(frame) for frame in video[2 * WINDOW + 2 :]]
        expected.append(session.flush())
    with engine.session(text(A, B), logits=True, encode_ahead=True) as session:
        found = [session.push(frame) for frame in video[: 2 * WINDOW + 2]]
        assert [len(results) for results in found] == [*[0] * (2 * WINDOW - 1), WINDOW, 0, 0]
        found.append(session.flush())
        assert len(found[-1]) == WINDOW + 2 and session.flush() == []
        found += [session.push(frame) for frame in video[2 * WINDOW + 2 :]]
        found.append(session.flush())
    require_equal([r for results in found for r in results], [r for results in expected for r in results])


@pytest.mark.parametrize("second", SECOND)
def test_sessions_side_by_side_keep_their_bits(toy, second):
    """They share the stages and what lies between them: two that encode ahead, and one that does not."""
    videos = [frames(CLIPS * WINDOW, seed=i) for i in range(3)]

    def run(*ahead):
        engine = load(toy, second)
        sessions = [engine.session(text(A), logits=True, encode_ahead=which) for which in ahead]
        found = [[], [], []]
        for turn in range(CLIPS * WINDOW):
            for session, video, results in zip(sessions, videos, found, strict=True):
                results += session.push(video[turn])
        return [results + session.flush() for session, results in zip(sessions, found, strict=True)]

    for found, expected in zip(run(True, False, True), run(False, False, False), strict=True):
        require_equal(found, expected)


def test_a_scheduler_s_steps_and_an_iteration_that_is_left(toy):
    engine, video = load(toy), frames(CLIPS * WINDOW)
    with engine.session(text(A), logits=True) as session:
        expected = list(session.stream(video))
    with engine.session(text(A), logits=True, encode_ahead=True) as session:
        steps = [step for frame in video for step in session.feed(frame)] + list(session.finish())
    require_equal([step for step in steps if isinstance(step, runtime.Result)], expected)
    with engine.session(text(A), logits=True, encode_ahead=True) as session:
        left = session.stream(iter(video[: 3 * WINDOW]))
        found = [next(left)]
        rest = [result for frame in video[2 * WINDOW :] for result in session.push(frame)] + session.flush()
        require_equal(found + rest, [expected[0], *expected[WINDOW:]])


def test_a_steady_clip_allocates_nothing_and_waits_once_per_frame(toy):
    engine, clips = load(toy), 10
    calls = engine.backend.device.driver.calls
    with engine.session(text(A, B), encode_ahead=True) as session:
        for i, frame in enumerate(frames(clips * WINDOW, seed=3)):
            if i == (clips - 2) * WINDOW:
                before = Counter(calls)
            session.push(frame)
        spent = calls - before
    count = 2 * WINDOW
    assert [spent[name] for name in ("upload", "download", "wait")] == [count] * 3
    assert spent["device"] == spent["pinned"] == spent["stage"] == spent["capture"] == 0
    assert spent["beside"] == count + 2 * 2, "the first stage of each frame; two sentences of each clip"


@pytest.mark.parametrize("second", SECOND)
def test_memory_of_a_session_that_is_closed_is_not_written_any_more(toy, second):
    engine = load(toy, second)
    driver = engine.backend.device.driver
    session = engine.session(text(A), encode_ahead=True)
    for frame in frames(4 * WINDOW):
        session.push(frame)
    session.close()
    driver.synchronize()
    assert not driver._second, "the stream waits for the second one before memory is given back"


def test_single_frames_are_not_encoded_ahead(toy):
    with pytest.raises(runtime.UserError, match="encode_ahead encodes whole clips"):
        load(toy).session(text(A), latency="low", encode_ahead=True)


def test_no_sentence_is_added(toy):
    with load(toy).session(text(A, B), encode_ahead=True) as session:
        with pytest.raises(runtime.UserError, match="open the session without it"):
            session.add(*text(B))
        session.remove(1)
        found = [r for frame in frames(3 * WINDOW) for r in session.push(frame)] + session.flush()
    assert {result.object_ids for result in found} == {(2,)}


def test_tensorrt_is_refused(toy):
    engine = load(toy)
    engine.backend.device.records_stages = False
    with pytest.raises(runtime.UserError, match="needs the backend ort-cuda"):
        engine.session(text(A), encode_ahead=True)
