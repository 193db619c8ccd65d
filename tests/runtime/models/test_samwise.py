"""The order of SAMWISE's stages, on the toy bundle, against the same arithmetic written as plain loops over lists."""

import numpy as np
import pytest

import runtime
from helpers import toy_samwise as toy
from helpers.samwise_schedule import A, B, C, frames, reference, run


@pytest.fixture
def engine(toy):
    with runtime.load(toy) as engine:
        yield engine


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9, 14])
def test_one_sentence_equals_the_plain_loop(engine, length):
    clip = frames(length)
    logits, scores = run(engine, clip, A)
    expected, expected_scores, fired = reference(clip, A)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores[0], expected_scores, rtol=1e-4, atol=1e-5)
    assert length < 9 or 1 < len(fired) < length // 2, "the decision never differs: it tests nothing"


def test_several_sentences_equal_one_at_a_time(engine):
    clip = frames(11)
    together, _ = run(engine, clip, A, B, C)  # three lanes in batches of two: one batch is not full
    for i, prompt in enumerate((A, B, C)):
        np.testing.assert_allclose(together[i], reference(clip, prompt)[0], rtol=1e-5, atol=1e-5)


def test_conditional_memory_off(engine):
    clip = frames(9)
    on, off = run(engine, clip, A)[0], run(engine, clip, A, conditional_memory=False)[0]
    np.testing.assert_allclose(off[0], reference(clip, A, conditional_memory=False)[0], rtol=1e-5, atol=1e-5)
    assert np.abs(on - off)[:, 3:].max() > 1e-3 and (on[:, :3] == off[:, :3]).all()


def test_conditional_memory_asked_of_a_bundle_without_it_is_refused(tmp_path):
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


def test_a_shorter_window_answers_sooner(engine):
    clip = frames(5)
    with engine.session([runtime.Text(tokens=A)], logits=True, window=2) as session:
        counts = [len(session.push(frame)) for frame in clip] + [len(session.flush())]
    assert counts == [0, 2, 0, 2, 0, 1]
    for window in (0, toy.WINDOW + 1):
        with pytest.raises(runtime.UserError, match="window must be 1 to 4"):
            engine.session([runtime.Text(tokens=A)], window=window)
    with pytest.raises(runtime.UserError, match="no option windows"):
        engine.session([runtime.Text(tokens=A)], windows=2)


def test_interleaved_sessions_do_not_see_each_other(engine):
    one, two = frames(9, seed=1), frames(9, 18, 24, seed=2)
    first, second = (engine.session([runtime.Text(tokens=t)], logits=True) for t in (A, B))
    got = {0: [], 1: []}
    for a, b in zip(one, two):
        got[0] += first.push(a)
        got[1] += second.push(b)
    got[0] += first.flush()
    got[1] += second.flush()
    for i, (clip, tokens) in enumerate(((one, A), (two, B))):
        np.testing.assert_allclose(
            np.stack([r.low_res_logits[0] for r in got[i]]), reference(clip, tokens)[0], rtol=1e-5, atol=1e-5
        )
        assert got[i][0].masks.shape == (1, *clip.shape[1:3])


def test_sessions_take_turns(engine):
    sessions = [engine.session([runtime.Text(tokens=t)]) for t in (A, B, C)]
    results = []
    for frame in frames(toy.WINDOW):
        results += sessions[0].push(frame) + sessions[1].push(frame)
    sessions[2].push(frames(1)[0])
    assert len(results) == 2 * toy.WINDOW
    assert sessions[0].flush() == [] == sessions[1].flush() and len(sessions[2].flush()) == 1


def test_shared_stages_run_once(engine):
    run(engine, frames(8), A, B)
    calls = {name: calls for name, (calls, _) in engine.timings.items()}
    assert calls["hiera_0"] == 8, "once per frame, for all sentences"
    assert calls["text_0"] == 2, "once per sentence, for all clips"
    assert calls["adapter_0"] == calls["text_2"] == 4, "once per clip and sentence"
    assert calls["hiera_1"] == calls["neck"] == 16, "once per frame and sentence"
    assert calls["memory_attention"] == 7, "never on frame 0; two sentences are one batch"
    asked = calls["conditional_memory"]
    assert 0 < asked < 8 and calls["mask_decoder"] == 8 + asked, "decoded again only where the question is asked"


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


def test_rows_are_given_back(engine):
    free = engine.networks["samwise"].pool.free
    for _ in range(3 * free):
        with engine.session([runtime.Text(tokens=A)]):
            assert engine.networks["samwise"].pool.free == free - 1
    assert engine.networks["samwise"].pool.free == free


def test_a_refused_prompt_costs_no_row(engine):
    free = engine.networks["samwise"].pool.free
    with pytest.raises(runtime.PromptError):
        engine.session([runtime.Text(tokens=A), runtime.Text(tokens=[0, toy.VOCABULARY, 2])])
    with pytest.raises(runtime.UserError, match="max_objects"):
        engine.session([runtime.Text(tokens=A)] * (free + 1))
    assert engine.networks["samwise"].pool.free == free


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
def test_what_is_not_a_frame_is_refused(engine, bad):
    with engine.session([runtime.Text(tokens=A)]) as session, pytest.raises(runtime.VideoError, match="frame 0"):
        session.push(bad)


def test_size_change_is_refused_and_nothing_is_lost(engine):
    with engine.session([runtime.Text(tokens=A)]) as session:
        session.push(frames(1)[0])
        with pytest.raises(runtime.VideoError, match="30x20 to 20x20"):
            session.push(frames(1, 20, 20)[0])
        assert len(session.flush()) == 1


@pytest.mark.parametrize("prompts", [[], "a dog", runtime.Text("a dog"), ["a dog"], [None]])
def test_what_is_not_a_list_of_prompts_is_refused(engine, prompts):
    with pytest.raises(runtime.PromptError):
        engine.session(prompts)
