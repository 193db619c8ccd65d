"""The order of SAMWISE's stages, on the toy bundle, against the same arithmetic written as plain loops over lists."""

import numpy as np
import pytest

import runtime
from helpers import toy_samwise as toy
from helpers.samwise_schedule import A, B, C, frames, network_input, pool, reference, run
from runtime.device.base import Cpu
from runtime.engine import MAX_OBJECTS
from runtime.tracking.object_memory import BlockPool, ring_ages


@pytest.fixture
def engine(toy):
    with runtime.load(toy) as engine:
        yield engine


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9, 14])
def test_one_prompt_equals_the_plain_loop(engine, length):
    clip = frames(length)
    logits, scores = run(engine, clip, A)
    expected, expected_scores, switched = reference(clip, A)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores[0], expected_scores, rtol=1e-4, atol=1e-5)
    assert length < 9 or 1 < len(switched) < length // 2, "the decision never differs: nothing is tested"


def test_several_prompts_equal_one_at_a_time(engine):
    clip = frames(11)
    together, _ = run(engine, clip, A, B, C)  # three tracks in batches of two: one batch is not full
    for i, prompt in enumerate((A, B, C)):
        np.testing.assert_allclose(together[i], reference(clip, prompt)[0], rtol=1e-5, atol=1e-5)


def test_results_have_the_predicted_ious(engine):
    clip = frames(5)
    red = pool(network_input(clip), 4)[:, 0]
    with engine.session([runtime.Text(tokens=p) for p in (A, B, C)], logits=True) as session:
        for low, result in zip(red, session.stream(clip), strict=True):  # the toy adds a tenth of it to every logit
            np.testing.assert_allclose(result.low_res_logits, low + 0.1 * result.ious[:, None, None], atol=1e-5)


@pytest.mark.parametrize("slots", [3, 4])
def test_ages_of_the_slots_of_a_ring(slots):
    rings = BlockPool(Cpu(), 1, slots, (2, 2), "float32", contiguous=True)
    memory = rings.open()
    for frame in range(8):
        seen = {int(rings.array[0, s, 0, 0]): int(age) for s, age in enumerate(ring_ages(frame, slots))}
        assert seen == {g: frame - g - 1 for g in range(max(0, frame - slots), frame)}
        assert len(seen) == memory.filled
        memory.ring_block(frame)[:] = frame


def test_conditional_memory_off(engine):
    clip = frames(9)
    on, off = run(engine, clip, A)[0], run(engine, clip, A, conditional_memory=False)[0]
    np.testing.assert_allclose(off[0], reference(clip, A, conditional_memory=False)[0], rtol=1e-5, atol=1e-5)
    assert np.abs(on - off)[:, 3:].max() > 1e-3 and (on[:, :3] == off[:, :3]).all()


def test_conditional_memory_on_a_bundle_without_it_is_refused(tmp_path):
    with runtime.load(toy.build(tmp_path / "plain", conditional_memory=False)) as engine:
        with pytest.raises(runtime.UserError, match="no conditional memory"):
            engine.session([runtime.Text(tokens=A)], conditional_memory=True)
        logits, _ = run(engine, frames(6), A)
        np.testing.assert_allclose(
            logits[0], reference(frames(6), A, conditional_memory=False)[0], rtol=1e-5, atol=1e-5
        )


def test_memory_off_decodes_every_frame_alone(engine):
    clip = frames(6)
    off = run(engine, clip, A, memory=False)[0]
    assert engine.stages["memory_attention"].calls == engine.stages["conditional_memory"].calls == 0
    first = run(engine, clip[:4], A)[0]
    assert (off[:, 0] == first[:, 0]).all() and np.abs(off[:, 1:4] - first[:, 1:]).max() > 1e-3


@pytest.mark.parametrize("length", [1, 4, 5, 8, 9])
def test_a_last_clip_of_one_frame_forgets_its_memory_as_the_official_code_does(engine, length):
    """The clip of the toy has four frames."""
    clip = frames(length)
    kept, forgotten = run(engine, clip, A)[0][0], run(engine, clip, A, reference_quirks=True)[0][0]
    assert (kept[:-1] == forgotten[:-1]).all()
    if length in (5, 9):
        assert (forgotten[-1] == run(engine, clip[-1:], A)[0][0][0]).all() and (forgotten[-1] != kept[-1]).any()
    else:
        assert (forgotten[-1] == kept[-1]).all()


def test_a_shorter_window_returns_results_sooner(engine):
    clip = frames(5)
    with engine.session([runtime.Text(tokens=A)], logits=True, window=2) as session:
        counts = [len(session.push(frame)) for frame in clip] + [len(session.flush())]
    assert counts == [0, 2, 0, 2, 0, 1]
    for window in (0, toy.WINDOW + 1):
        with pytest.raises(runtime.UserError, match="window must be 1 to 4"):
            engine.session([runtime.Text(tokens=A)], window=window)
    with pytest.raises(runtime.UserError, match="no option windows"):
        engine.session([runtime.Text(tokens=A)], windows=2)


def test_interleaved_sessions_are_independent(engine):
    one, two = frames(9, seed=1), frames(9, 18, 24, seed=2)
    first, second = (engine.session([runtime.Text(tokens=t)], logits=True) for t in (A, B))
    got = {0: [], 1: []}
    for a, b in zip(one, two, strict=True):
        got[0] += first.push(a)
        got[1] += second.push(b)
    got[0] += first.flush()
    got[1] += second.flush()
    for i, (clip, tokens) in enumerate(((one, A), (two, B))):
        np.testing.assert_allclose(
            np.stack([r.low_res_logits[0] for r in got[i]]), reference(clip, tokens)[0], rtol=1e-5, atol=1e-5
        )
        assert got[i][0].masks.shape == (1, *clip.shape[1:3])


def test_each_session_returns_its_own_clips(engine):
    """Frames pushed alternately: a session returns results when its own clip is complete."""
    sessions = [engine.session([runtime.Text(tokens=A)]) for _ in range(3)]
    assert sessions[2].push(frames(1)[0]) == []
    counts = [[len(session.push(frame)) for session in sessions[:2]] for frame in frames(toy.WINDOW)]
    assert counts == [[0, 0]] * (toy.WINDOW - 1) + [[toy.WINDOW, toy.WINDOW]]
    assert sessions[0].flush() == sessions[1].flush() == []
    assert len(sessions[2].flush()) == 1


def test_shared_stages_run_once(engine):
    run(engine, frames(8), A, B)
    calls = {name: calls for name, (calls, _) in engine.timings.items()}
    assert calls["hiera_0"] == 8, "once per frame, for all prompts"
    assert calls["text_0"] == 2, "once per prompt, for all clips"
    assert calls["adapter_0"] == calls["text_2"] == 4, "once per clip and prompt"
    assert calls["hiera_1"] == calls["neck"] == 16, "once per frame and prompt"
    assert calls["memory_attention"] == 7, "never on frame 0; two prompts are one batch"
    due = calls["conditional_memory"]
    assert 0 < due < 8 and calls["mask_decoder"] == 8 + due, "decoded again only where it is due"


def test_frames_after_a_flush_keep_the_memory(engine):
    clip = frames(4)
    with engine.session([runtime.Text(tokens=A)], logits=True) as session:
        results = session.push(clip[0]) + session.flush() + session.push(clip[1]) + session.flush()
    with engine.session([runtime.Text(tokens=A)], logits=True) as session:
        alone = session.push(clip[1]) + session.flush()
    assert [r.frame_index for r in results] == [0, 1]
    assert np.abs(results[1].low_res_logits - alone[0].low_res_logits).max() > 1e-4


def test_nothing_is_allocated_on_the_device_after_opening(engine, monkeypatch):
    session = engine.session([runtime.Text(tokens=A), runtime.Text(tokens=B)])
    monkeypatch.setattr(engine.backend.device, "empty", lambda *a: pytest.fail("allocated while running"))
    assert len(list(session.stream(frames(9)))) == 9


def open_objects(engine, count):
    """Open and close one session with `count` objects."""
    engine.session([runtime.Text(tokens=A)] * count).close()


def test_closed_sessions_free_their_objects(engine):
    for _ in range(3 * MAX_OBJECTS):
        with engine.session([runtime.Text(tokens=A)]), pytest.raises(runtime.UserError, match="max_objects"):
            open_objects(engine, MAX_OBJECTS)
    with engine.session([runtime.Text(tokens=A)]):
        open_objects(engine, MAX_OBJECTS - 1)
    open_objects(engine, MAX_OBJECTS)


def test_a_refused_prompt_reserves_no_object(engine):
    with pytest.raises(runtime.PromptError):
        engine.session([runtime.Text(tokens=A), runtime.Text(tokens=[0, toy.VOCABULARY, 2])])
    with pytest.raises(runtime.UserError, match="max_objects"):
        open_objects(engine, MAX_OBJECTS + 1)
    open_objects(engine, MAX_OBJECTS)


def test_closed_session(engine):
    session = engine.session([runtime.Text(tokens=A)])
    session.close()
    session.close()
    with pytest.raises(runtime.UserError, match="closed"):
        session.push(frames(1)[0])
    with pytest.raises(runtime.UserError, match="closed"):
        session.flush()


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        "frame",
        None,
    ],
)
def test_invalid_frames_are_refused(engine, bad):
    with engine.session([runtime.Text(tokens=A)]) as session, pytest.raises(runtime.VideoError, match="frame 0"):
        session.push(bad)


def test_a_size_change_is_refused_and_loses_no_frame(engine):
    with engine.session([runtime.Text(tokens=A)]) as session:
        session.push(frames(1)[0])
        with pytest.raises(runtime.VideoError, match="30x20 to 20x20"):
            session.push(frames(1, 20, 20)[0])
        assert len(session.flush()) == 1


@pytest.mark.parametrize("prompts", [[], "a dog", runtime.Text("a dog"), ["a dog"], [None]])
def test_invalid_prompt_lists_are_refused(engine, prompts):
    with pytest.raises(runtime.PromptError):
        engine.session(prompts)
