"""Low latency of sentences: a result for every frame, from clips that end with it."""

import numpy as np
import pytest

import runtime
from helpers import toy_samwise
from helpers.fake_cuda import FakeCudaBackend
from helpers.samwise_schedule import A, B, C, frames, low_latency_reference, run
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import Manifest
from runtime.engine import Engine


@pytest.fixture(name="engine", params=["cpu", "fake CUDA"])
def any_engine(toy, request):
    with runtime.load(toy) if request.param == "cpu" else Engine(choose(toy), FakeCudaBackend()) as engine:
        yield engine


@pytest.mark.parametrize("length", [1, 2, toy_samwise.WINDOW, toy_samwise.WINDOW + 1, 15])
def test_every_frame_equals_the_plain_loop(engine, length):
    clip = frames(length)
    logits, _ = run(engine, clip, A, B, C, latency="low")
    for got, tokens in zip(logits, (A, B, C), strict=True):
        np.testing.assert_allclose(got, low_latency_reference(clip, tokens), rtol=1e-5, atol=1e-5)


def test_the_last_frame_of_the_first_window_is_that_of_a_whole_clip(engine):
    clip = frames(toy_samwise.WINDOW)
    whole, low = run(engine, clip, A)[0], run(engine, clip, A, latency="low")[0]
    assert np.array_equal(whole[0, -1], low[0, -1]) and not np.array_equal(whole[0, 0], low[0, 0])


def test_each_push_returns_its_frame(engine):
    with engine.session([runtime.Text(tokens=A)], latency="low") as session:
        for number, frame in enumerate(frames(9)):
            (result,) = session.push(frame, time=number / 10)
            assert (result.frame_index, result.time) == (number, number / 10)
        assert session.flush() == []
        assert [result.frame_index for result in session.stream(frames(2))] == [9, 10]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_with_a_shorter_window(engine, window, monkeypatch):
    clip = frames(7)
    logits, _ = run(engine, clip, A, window=window, latency="low")
    monkeypatch.setattr(toy_samwise, "WINDOW", window)
    expected = run(engine, clip, A, window=1)[0][0] if window == 1 else low_latency_reference(clip, A)
    np.testing.assert_allclose(logits[0], expected, rtol=1e-5, atol=1e-5)


def test_interleaved_sessions_are_independent(engine):
    clips = {tokens: frames(9, seed=seed) for seed, tokens in enumerate((tuple(A), tuple(B)))}
    sessions = {t: engine.session([runtime.Text(tokens=t)], logits=True, latency="low") for t in clips}
    found = {tokens: [] for tokens in clips}
    for number in range(9):
        for tokens, session in sessions.items():
            found[tokens] += session.push(clips[tokens][number])
    for tokens, clip in clips.items():
        got = np.stack([result.low_res_logits[0] for result in found[tokens]])
        np.testing.assert_allclose(got, low_latency_reference(clip, tokens), rtol=1e-5, atol=1e-5)


def test_nothing_is_allocated_after_opening(engine, monkeypatch):
    with engine.session([runtime.Text(tokens=A), runtime.Text(tokens=B)], latency="low") as session:
        session.push(frames(1)[0])  # the size of the frames
        monkeypatch.setattr(engine.backend.device, "empty", lambda *a: pytest.fail("allocated while running"))
        assert len(list(session.stream(frames(2 * toy_samwise.WINDOW)))) == 2 * toy_samwise.WINDOW


@pytest.mark.parametrize("prompts", [[A], [A, B, C]])
def test_a_steady_frame_is_recorded_once(toy, prompts):
    """One graph encodes a frame with a prompt; the ring turns outside."""
    with Engine(choose(toy), FakeCudaBackend()) as engine:
        run(engine, frames(60), *prompts, latency="low")
        driver, step, text = engine.backend.device.driver, engine.stages["adapter_0_step"], engine.stages["text_1"]
        started = len(prompts) * toy_samwise.WINDOW
        assert text.calls - started == 2 * len(prompts), "run once, recorded once"
        assert step.calls == len(prompts) * (toy_samwise.WINDOW - 1 + 2), (
            "kept at the end of the first window, then as above"
        )
        assert driver.calls["launch"] > 40


def test_errors(engine, tmp_path):
    with pytest.raises(runtime.UserError, match="latency must be one of clip, low, not 'none'"):
        engine.session([runtime.Text(tokens=A)], latency="none")
    folder = toy_samwise.build(tmp_path / "old")
    manifest = Manifest.load(folder)
    for k in range(3):
        manifest.stages.pop(f"adapter_{k}_step")
    manifest.dump(folder)
    message = "old was exported without low latency; run `python -m export add-steps .*old`, or export it again"
    with runtime.load(folder) as old, pytest.raises(runtime.UserError, match=message):
        old.session([runtime.Text(tokens=A)], latency="low")
