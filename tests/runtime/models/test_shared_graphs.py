"""Recordings of SAMWISE's encoder that all sessions of an engine share, on the fake driver."""

from collections import Counter

import numpy as np
import pytest

import runtime
from helpers.fake_cuda import FakeCudaBackend
from helpers.samwise_schedule import A, B, C, frames
from helpers.toy_samwise import WINDOW
from runtime.bundle.bundle import choose
from runtime.models.samwise import clip_encoder

NAMES = ("masks", "low_res_logits", "score_logits", "boxes", "frame_index")
CLIPS = 3
VIDEOS = [frames(CLIPS * WINDOW, seed=i) for i in range(3)]
SENTENCES = [[A], [B, C], [C]]
LENGTHS = len({len(tokens) for sentences in SENTENCES for tokens in sentences})


def load(toy, graphs="auto", second="early"):
    engine = runtime.Engine(choose(toy), FakeCudaBackend(), graphs=graphs)
    engine.backend.device.driver.second_runs = second
    return engine


def opened(engine, sentences, **options):
    return engine.session([runtime.Text(tokens=t) for t in sentences], logits=True, **options)


def require_equal(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        for name in NAMES:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def encoder_calls(engine):
    return np.array([engine.stages[name].calls for name in ("hiera_0", "hiera_1", "neck")])


def in_turns(engine, ahead=None):
    """Frame by frame, at different places of their clips."""
    found = [[], [], []]
    sessions = [opened(engine, sentences, encode_ahead=i == ahead) for i, sentences in enumerate(SENTENCES)]
    for turn in range(CLIPS * WINDOW + 2):
        for i, session in enumerate(sessions):
            if 0 <= turn - i < CLIPS * WINDOW:
                found[i] += session.push(VIDEOS[i][turn - i])
    for session, results in zip(sessions, found, strict=True):
        results += session.flush()
        session.close()
    return found


@pytest.fixture(scope="module")
def plain(toy):
    """An engine that runs stage by stage, on arrays of each session."""
    return load(toy, graphs="off")


@pytest.fixture(scope="module")
def expected(plain):
    return in_turns(plain)


def test_sessions_in_turns_record_once(toy, expected):
    engine = load(toy)
    for found, wanted in zip(in_turns(engine), expected, strict=True):
        require_equal(found, wanted)
    assert list(encoder_calls(engine)) == [2, 2 * LENGTHS, 2 * LENGTHS], "run once, recorded once, for each length"


def test_a_later_session_launches_nothing_but_graphs(toy, plain):
    engine = load(toy)
    with opened(plain, SENTENCES[1]) as session:
        wanted = [r for frame in VIDEOS[1][:WINDOW] for r in session.push(frame)]
    for _ in range(2):
        with opened(engine, SENTENCES[1]) as session:
            list(session.stream(VIDEOS[0]))
    before, calls = encoder_calls(engine), engine.backend.device.driver.calls
    captures, stages = calls["capture"], calls["stage"]
    with opened(engine, SENTENCES[1]) as session:
        require_equal([r for frame in VIDEOS[1][:WINDOW] for r in session.push(frame)], wanted)
        assert list(encoder_calls(engine)) == list(before), "from the first frame on"
        assert calls["capture"] == captures and calls["stage"] - stages == 2, "the sentences are encoded"


def test_a_session_holds_maps_and_no_pixels(toy):
    engine = load(toy)
    with opened(engine, [A]) as session:
        assert set(session._sentences._groups[0].clip.arrays) == {"vision_0", "high_res_0"}


@pytest.mark.parametrize("when", [2, WINDOW + 1])
def test_a_session_that_is_closed_leaves_the_others_whole(toy, plain, when):
    found = [[], []]
    for engine, results in zip((load(toy), plain), found, strict=True):
        closed, kept = opened(engine, SENTENCES[0]), opened(engine, SENTENCES[1])
        for turn, frame in enumerate(VIDEOS[1]):
            if turn < when:
                closed.push(VIDEOS[0][turn])
            elif turn == when:
                closed.close()
            results += kept.push(frame)
        kept.close()
    require_equal(*found)


@pytest.mark.parametrize("left", [False, True])
def test_steps_of_sessions_in_turns(toy, expected, left):
    """A scheduler's: other sessions take frames between two sentences of a clip, and one is left in its middle."""
    engine, found = load(toy), [[], [], []]

    sessions = [opened(engine, sentences) for sentences in SENTENCES]

    def steps(i):
        for frame in VIDEOS[i]:
            yield from sessions[i].feed(frame)

    running = {i: steps(i) for i in range(3)}
    for turn in range(10_000):
        for i in list(running):
            step = next(running[i], "end")
            if step == "end" or (left and i == 0 and turn == 2 * WINDOW):
                running.pop(i).close()
                sessions[i].close()
            elif isinstance(step, runtime.Result):
                found[i].append(step)
        if not running:
            break
    for results, wanted in list(zip(found, expected, strict=True))[left:]:
        require_equal(results, wanted)


@pytest.mark.parametrize("second", ["early", "late"])
def test_a_session_that_encodes_ahead_has_its_own(toy, expected, second):
    """On the second stream, beside sessions whose graphs use the same scratch."""
    engine = load(toy, second=second)
    for found, wanted in zip(in_turns(engine, ahead=1), expected, strict=True):
        require_equal(found, wanted)
    assert engine.backend.device.driver.calls["beside"] > 0


def test_the_latest_graphs_are_kept(toy, expected, monkeypatch):
    """Sentences of several lengths in turns take each other's place; the bits stay."""
    monkeypatch.setattr(clip_encoder, "MAX_GRAPHS", 2)
    for found, wanted in zip(in_turns(load(toy)), expected, strict=True):
        require_equal(found, wanted)


def test_clips_of_several_lengths(toy, plain):
    """Flushes make short clips, in sessions with another window."""
    engine, found = load(toy), []
    for _ in range(2):
        for window in (WINDOW, 2):
            with opened(engine, [A], window=window) as one, opened(plain, [A], window=window) as other:
                for frame in VIDEOS[0][: WINDOW + 1]:
                    found.append((one.push(frame), other.push(frame)))
                found.append((one.flush(), other.flush()))
    results = [(a, b) for one, other in found for a, b in zip(one, other, strict=True)]
    require_equal(*zip(*results, strict=True))
    assert Counter(engine.backend.device.driver.calls)["capture"] > 3
