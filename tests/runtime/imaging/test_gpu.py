"""Tests of `runtime.imaging.gpu` with kernels that compute on the host, and of arrays of other libraries."""

import ctypes
import json
import logging
from collections import Counter

import numpy as np
import pytest

import runtime
from helpers import toy_samwise as toy
from helpers.fake_cuda import IMAGE_SIGNATURES, FakeCudaBackend
from helpers.samwise_schedule import A, B, C, frames
from runtime.bundle.bundle import choose
from runtime.device import interop
from runtime.device.array import DeviceArray
from runtime.device.kernels import choose_kernels
from runtime.engine import Engine


@pytest.fixture
def bundle(tmp_path):
    """The toy bundle with two kernels; their code is never run, `fake_cuda.HostKernels` is."""
    folder = toy.build(tmp_path / "toy")
    (folder / "kernels").mkdir()
    entries = [
        {
            "kernel": name,
            "capability": 89,
            "constants": constants,
            "file": f"{name}.cubin",
            "symbol": name,
            "signature": signature,
            "extra_pointers": 0,
            "threads": 128,
            "shared": 0,
        }
        for name, (signature, constants) in IMAGE_SIGNATURES.items()
    ]
    for name in IMAGE_SIGNATURES:
        (folder / "kernels" / f"{name}.cubin").write_bytes(b"\x7fELF")
    (folder / "kernels" / "index.json").write_text(json.dumps({"format": 1, "kernels": entries}))
    return choose(folder)


@pytest.fixture
def engine(bundle):
    with Engine(bundle, FakeCudaBackend(), kernels="on") as engine:
        yield engine


def results(engine, clip, *prompts, **options):
    with engine.session([runtime.Text(tokens=p) for p in prompts], **options) as session:
        return list(session.stream(clip))


@pytest.mark.parametrize("prompts", [[A], [A, B, C]])
@pytest.mark.parametrize("logits", [False, True])
def test_same_results_as_on_the_host(engine, toy, prompts, logits):
    clip = frames(14, 23, 31)
    with runtime.load(toy, backend="ort") as host:
        expected = results(host, clip, *prompts, logits=logits)
    found = results(engine, clip, *prompts, logits=logits)
    assert any(r.masks.any() and not r.masks.all() for r in expected)
    for got, want in zip(found, expected, strict=True):
        assert got.masks.dtype == bool and got.masks.shape == want.masks.shape
        np.testing.assert_array_equal(got.masks, want.masks)
        np.testing.assert_array_equal(got.boxes, want.boxes)
        np.testing.assert_allclose(got.score_logits, want.score_logits, rtol=1e-5, atol=1e-6)
        assert (got.low_res_logits is None) is not logits
        if logits:
            np.testing.assert_allclose(got.low_res_logits, want.low_res_logits, rtol=1e-5, atol=1e-5)


def test_one_upload_of_bytes_one_download_one_wait_per_frame(engine):
    calls = engine.backend.device.driver.calls
    with engine.session([runtime.Text(tokens=A), runtime.Text(tokens=B)]) as session:
        list(session.stream(frames(3 * toy.WINDOW)))
        before = Counter(calls)
        for frame in frames(4 * toy.WINDOW, seed=3):
            session.push(frame)
    spent = Counter(calls)
    spent.subtract(before)
    n = 4 * toy.WINDOW
    assert (spent["upload"], spent["download"], spent["wait"], spent["preprocess"], spent["postprocess"]) == (n,) * 5
    assert spent["device"] == spent["pinned"] == 0


class Interface:
    """An array as PyCUDA, CuPy and Numba export it."""

    def __init__(self, host, stream=None, strides=None):
        self.host = host
        self.__cuda_array_interface__ = {
            "shape": host.shape,
            "typestr": host.dtype.str,
            "data": (host.ctypes.data, False),
            "version": 3,
            "strides": strides,
            "stream": stream,
        }


class Dlpack:
    """An array as torch exports it: a capsule of numpy's with the device type CUDA."""

    def __init__(self, host):
        self.host, self.streams = host, []

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, stream=None):
        self.streams.append(stream)
        return self.host.__dlpack__()


def ours(host):
    return DeviceArray(host.ctypes.data, host.shape, host.dtype, host)


@pytest.mark.parametrize("wrap", [Interface, Dlpack, ours])
def test_frames_on_the_device_are_not_copied(engine, toy, wrap):
    clip = [np.ascontiguousarray(f) for f in frames(9, 24, 32)]
    expected = results(engine, clip, A)
    # the fake device knows its own memory only; a frame that another library owns is registered as device memory
    driver = engine.backend.device.driver
    for frame in clip:
        driver.register(frame, "device")
    with engine.session([runtime.Text(tokens=A)]) as session:
        session.push(wrap(clip[0]))  # the first frame brings the tables of its size
        uploads = driver.calls["upload"]
        found = list(session.stream(wrap(f) for f in clip[1:]))
    assert driver.calls["upload"] == uploads, "no frame crossed the bus"
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got.masks, want.masks)


def test_streams_of_other_libraries_are_waited_for(engine):
    device, host = engine.backend.device, np.zeros((4, 4, 3), np.uint8)
    interop.as_device_array(Interface(host), device)
    assert device.driver.calls["wait_for"] == 0
    interop.as_device_array(Interface(host, stream=7), device)
    assert device.driver.calls["wait_for"] == 1
    tensor = Dlpack(host)
    interop.as_device_array(tensor, device)
    assert tensor.streams == [device.stream]


def test_a_frame_with_gaps_is_refused(engine):
    device, host = engine.backend.device, np.zeros((4, 8, 3), np.uint8)
    assert interop.as_device_array(Interface(host, strides=(24, 3, 1)), device).shape == (4, 8, 3)
    with pytest.raises(runtime.VideoError, match="gaps"):
        interop.as_device_array(Interface(host[:, ::2], strides=(24, 6, 1)), device)
    with pytest.raises(runtime.VideoError, match="gaps"):
        interop.as_device_array(Dlpack(host[:, ::2]), device)
    with engine.session([runtime.Text(tokens=A)]) as session, pytest.raises(runtime.VideoError, match="must be uint8"):
        session.push(Interface(np.zeros((4, 4, 3), np.float32)))


def test_a_frame_on_a_gpu_without_kernels_is_refused(toy):
    with runtime.load(toy, backend="ort") as engine, engine.session([runtime.Text(tokens=A)]) as session:
        with pytest.raises(runtime.VideoError, match="frame 0: is on a GPU"):
            session.push(Interface(np.zeros((4, 4, 3), np.uint8)))


def test_an_unaligned_frame_is_copied_first(engine):
    memory = np.zeros(20 * 30 * 3 + 64, np.uint8)
    start = -memory.ctypes.data % 16 + 3
    frame = memory[start : start + 1800].reshape(20, 30, 3)
    frame[...] = frames(1)[0]
    driver = engine.backend.device.driver
    driver.register(frame, "device")
    copies = [driver.calls["copy"]]
    with engine.session([runtime.Text(tokens=A)]) as session:
        session.push(frames(1)[0])
        copies.append(driver.calls["copy"])
    with engine.session([runtime.Text(tokens=A)]) as session:
        session.push(Interface(frame))
        copies.append(driver.calls["copy"])
        assert copies[2] - copies[1] == copies[1] - copies[0] + 1
        (got,) = session.flush()
    np.testing.assert_array_equal(got.masks, results(engine, frames(1), A)[0].masks)


def test_kernels_on_off_auto(bundle, toy, caplog):
    caplog.set_level(logging.INFO, "runtime")
    assert Engine(bundle, FakeCudaBackend(), kernels="off").kernels is None
    assert Engine(bundle, FakeCudaBackend()).kernels is not None
    assert Engine(choose(toy), FakeCudaBackend()).kernels is None
    assert "compiled kernels not used" in caplog.text
    with pytest.raises(runtime.BundleError, match="no compiled kernels; run `python -m export.kernels"):
        Engine(choose(toy), FakeCudaBackend(), kernels="on")
    with pytest.raises(runtime.BackendError, match="needs a CUDA backend"):
        runtime.load(toy, backend="ort", kernels="on")
    with pytest.raises(runtime.UserError, match="auto, on, off"):
        choose_kernels("yes", toy, None)


def test_dlpack_memory_is_released():
    host = np.zeros((4, 4, 3), np.uint8)
    array = interop.as_device_array(Dlpack(host), type("D", (), {"stream": 0, "index": 0}))
    assert array.ptr == host.ctypes.data and array.dtype == np.uint8 and array.shape == (4, 4, 3)
    ctypes.c_uint8.from_address(array.ptr).value = 9
    assert host[0, 0, 0] == 9


def test_logits_can_be_read_on_the_device(engine):
    with engine.session([runtime.Text(tokens=p) for p in (A, B, C)], logits=True) as session:
        session.push(frames(1)[0])
        (result,) = session.flush()
        parts = [
            np.frombuffer(ctypes.string_at(a.__cuda_array_interface__["data"][0], a.nbytes), a.dtype).reshape(a.shape)
            for a in session.device_logits
        ]
    np.testing.assert_array_equal(np.concatenate(parts), result.low_res_logits)
    assert [len(part) for part in parts] == [2, 1]
