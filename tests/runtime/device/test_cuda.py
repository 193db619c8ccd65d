"""SAMWISE on a device with its own memory: a fake driver counts the calls."""

import threading
from collections import Counter

import numpy as np
import pytest

import runtime
from helpers.fake_cuda import FakeCudaBackend, FakeDriver
from helpers.samwise_schedule import A, B, C, frames, reference, run
from helpers.waiting import PATIENCE
from runtime.bundle.bundle import choose
from runtime.device.array import DeviceArray
from runtime.device.cuda import Cuda
from runtime.device.graphs import SharedGraphs
from runtime.engine import Engine


@pytest.fixture
def engine(toy):
    with Engine(choose(toy), FakeCudaBackend()) as engine:
        yield engine


@pytest.mark.parametrize("prompts", [[A], [A, B, C]])
def test_same_results_as_the_plain_loop(engine, prompts):
    clip = frames(11)
    logits, _ = run(engine, clip, *prompts)
    for got, prompt in zip(logits, prompts, strict=True):
        np.testing.assert_allclose(got, reference(clip, prompt)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prompts", [[A], [A, B, C]])
def test_frames_with_full_memory_are_one_graph_and_equal_the_plain_loop(engine, prompts, monkeypatch):
    """Memory is full from frame 5 on; a batch has one graph per set of tracks whose conditional memory is due."""
    clip, driver = frames(41, seed=5), engine.backend.device.driver
    monkeypatch.setattr(SharedGraphs, "is_ready", False)
    plain = Counter({name: timed.calls for name, timed in engine.stages.items()})
    logits, _ = run(engine, clip, *prompts)
    for got, prompt in zip(logits, prompts, strict=True):
        np.testing.assert_allclose(got, reference(clip, prompt)[0], rtol=1e-5, atol=1e-5)
    spent = Counter({name: timed.calls for name, timed in engine.stages.items()})
    spent.subtract(plain)
    batches = -(-len(prompts) // 2)
    assert driver.calls["launch"] + spent["memory_attention"] - driver.calls["capture"] == 40 * batches
    assert 0 < driver.calls["capture"] <= 8 * batches and driver.calls["launch"] > 20 * batches


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("prompts", [[A], [A, B, C]])
def test_encoding_of_a_full_clip_is_one_graph_per_prompt(engine, prompts, window):
    """And the first stage is one for all frames; a last clip that is shorter has its own, as have sentences of another
    length."""
    clip = frames(41, seed=6)
    trunk, neck = engine.stages["hiera_0"], engine.stages["neck"]
    logits, _ = run(engine, clip, *prompts, window=window)
    if window is None:
        for got, prompt in zip(logits, prompts, strict=True):
            np.testing.assert_allclose(got, reference(clip, prompt)[0], rtol=1e-5, atol=1e-5)
    assert trunk.calls == 2, "run once, recorded once"
    counts = Counter(map(len, prompts))
    last = 0 if window else sum(min(count, 2) for count in counts.values())
    assert neck.calls == 2 * len(counts) + last


def test_a_device_that_cannot_capture_runs_stage_by_stage_and_logs_it_once(engine, monkeypatch, caplog):
    driver = engine.backend.device.driver

    def refuse(recording, keep):
        driver.recording = None
        if keep:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(driver, "end_capture", refuse)
    clip = frames(14)
    np.testing.assert_allclose(run(engine, clip, A)[0][0], reference(clip, A)[0], rtol=1e-5, atol=1e-5)
    assert [r.message for r in caplog.records if "no CUDA graph" in r.message] == [
        "no CUDA graph: operation not permitted when stream is capturing; frames are launched stage by stage"
    ]
    assert not driver.calls["launch"]


@pytest.mark.parametrize("graphs, launches", [("auto", True), ("on", True), ("off", False)])
def test_graphs_are_recorded_unless_they_are_off(toy, graphs, launches):
    with Engine(choose(toy), FakeCudaBackend(), graphs=graphs) as engine:
        logits, _ = run(engine, frames(14), A)
    np.testing.assert_allclose(logits[0], reference(frames(14), A)[0], rtol=1e-5, atol=1e-5)
    assert bool(engine.backend.device.driver.calls["launch"]) == launches


def test_graphs_that_are_required_and_cannot_be_are_an_error(toy, monkeypatch):
    with pytest.raises(runtime.BackendError, match="--graphs on needs a CUDA backend"):
        runtime.load(toy, backend="ort", graphs="on")
    with pytest.raises(runtime.UserError, match="graphs 'always' is not one of auto, on, off"):
        runtime.load(toy, backend="ort", graphs="always")
    engine = Engine(choose(toy), FakeCudaBackend(), graphs="on")
    with monkeypatch.context() as patch:
        patch.setattr(engine.backend.device.driver, "end_capture", lambda recording, keep: 1 / 0)
        with pytest.raises(runtime.BackendError, match="no CUDA graph: .*; use --graphs auto or off"):
            run(engine, frames(14), A)


def test_a_stage_that_fails_during_capture_leaves_the_stream_usable(engine, monkeypatch, caplog):
    driver, stage = engine.backend.device.driver, engine.stages["mask_decoder"].stage
    run_stage = stage.run

    def fails(**arrays):
        if driver.recording is not None:
            raise RuntimeError("cudaMalloc while capturing")
        run_stage(**arrays)

    monkeypatch.setattr(stage, "run", fails)
    clip = frames(14)
    np.testing.assert_allclose(run(engine, clip, A)[0][0], reference(clip, A)[0], rtol=1e-5, atol=1e-5)
    assert driver.recording is None and "cudaMalloc while capturing" in caplog.text


def test_views_of_a_device_array_equal_those_of_numpy():
    host = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    array = DeviceArray(host.ctypes.data, host.shape, host.dtype, host)
    for key in (
        0,
        -1,
        slice(1, 2),
        (1, 2),
        (slice(0, 1), slice(0, 2)),
        (1, None),
        None,
        (slice(0, 1), 2, slice(1, 3)),
        (slice(None), slice(None)),
        (1, slice(1, 1)),
    ):
        view, expected = array[key], host[key]
        assert view.shape == expected.shape
        assert expected.size == 0 or view.ptr == expected.ctypes.data
    for key in ((slice(None), 0), (slice(None), slice(0, 2)), slice(0, 2, 2), 2, (0, 0, 0, 0, 0)):
        with pytest.raises(IndexError):
            array[key]
    assert array.reshape(6, -1).shape == (6, 20) and array[0].reshape(-1).view("uint8").shape == (240,)
    with pytest.raises(ValueError):
        array.reshape(7)
    assert [a.ptr for a in array] == [h.ctypes.data for h in host]
    assert array.__cuda_array_interface__["data"] == (array.ptr, False)


def test_constants_and_round_trips():
    device = Cuda(FakeDriver())
    host = np.arange(12, dtype=np.int64).reshape(3, 4)
    array = device.constant(host)
    other = device.empty((3, 4), "int64")
    device.copy(array, other)
    assert (device.download(other) == host).all()
    sevens = device.staging(other)
    sevens[...] = 7
    device.upload(sevens, other)
    assert (device.download(other) == 7).all() and (device.download(array) == host).all()


def test_closed_sessions_leave_nothing_pinned(engine):
    driver, held = engine.backend.device.driver, []
    for seed in range(4):
        run(engine, frames(5, seed=seed), A, B, C)
        held.append(driver.allocated("pinned"))
    assert held[1:] == held[:-1], "the staging buffers of a closed session are freed"


def test_threads_share_the_device(engine):
    """The driver refuses a thread that the device is not current in, and the results are those of one thread."""
    clips, prompts, found = [frames(11, seed=s) for s in range(3)], [A, B, C], {}
    threads = [
        threading.Thread(target=lambda i=i: found.setdefault(i, run(engine, clips[i], prompts[i]))) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for i, (logits, _) in found.items():
        np.testing.assert_allclose(logits[0], reference(clips[i], prompts[i])[0], rtol=1e-5, atol=1e-5)
    assert len(found) == 3


def test_cuda_without_a_gpu_is_an_error(toy):
    from runtime.backends.ort import OrtCudaBackend

    try:
        OrtCudaBackend()
    except runtime.BackendError as error:
        assert "\n" not in str(error)
    else:
        pytest.skip("there is a CUDA device here")
    with pytest.raises(runtime.BackendError):
        runtime.load(toy, backend="ort-cuda")
