"""Stages and videos on every backend, as `benchmarks.gpu_check` measures them, on fake devices."""

import sys

import pytest

from benchmarks import gpu_pipeline
from helpers import fake_tensorrt, toy_sam2
from helpers import toy_samwise as toy
from helpers.fake_cuda import FakeCudaBackend, FakeDriver
from helpers.fake_tensorrt import FakeLibrary
from runtime.backends.trt import TrtBackend
from runtime.device.cuda import Cuda
from runtime.errors import BackendError


@pytest.fixture
def engines(tmp_path):
    toy.build(tmp_path / "engines" / "toy")
    toy_sam2.build(tmp_path / "engines" / "clicks")
    return tmp_path / "engines"


def make(name):
    if name == "tensorrt_rtx":
        raise BackendError("backend 'tensorrt_rtx' needs tensorrt_rtx")
    if name == "ort-cuda":
        return FakeCudaBackend()
    driver = fake_tensorrt.Runtime.driver = FakeDriver()
    return TrtBackend(device=Cuda(driver))


def test_every_bundle_on_every_backend(engines, monkeypatch):
    from export.tensorrt import build

    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setattr(build, "Library", lambda name: FakeLibrary(name, fake_tensorrt.__version__))
    monkeypatch.setattr(FakeLibrary, "capabilities", lambda self, targets: (89,))
    before = sorted(p.name for p in (engines / "toy").iterdir())
    found = gpu_pipeline.check(engines, gpu_pipeline.Video(9, lambda: 5), (1, 2), make)
    assert found["clicks"] == {"skipped": "sam2 takes no sentence"}
    assert found["toy"]["tensorrt_rtx"] == {"skipped": "backend 'tensorrt_rtx' needs tensorrt_rtx"}
    for backend in ("ort-cuda", "tensorrt"):
        result = found["toy"][backend]
        assert result["split_stages"] == {"skipped": "no split stages; export with --split-attention"}
        assert set(result["stages"]) == set(toy.GRAPHS) and all(s > 0 for s in result["stages"].values())
        for n in (1, 2):
            video = result[f"objects_{n}"]
            assert video["captures"] > 0 and video["graphs_grown_bytes"] == 0 and video["graph_gain"] > 0
    assert sorted(p.name for p in (engines / "toy").iterdir()) == before, "the bundle is left alone"


def test_failing_backend_does_not_stop_the_others(engines, monkeypatch):
    def fails(name):
        if name == "tensorrt":
            raise OSError("libnvinfer.so.10: cannot open shared object file")
        return make(name)

    found = gpu_pipeline.check(engines, gpu_pipeline.Video(4, lambda: 5), (1,), fails)["toy"]
    assert found["tensorrt"] == {"error": "OSError: libnvinfer.so.10: cannot open shared object file"}
    assert "stages" in found["ort-cuda"]


def test_no_bundle(tmp_path):
    assert "skipped" in gpu_pipeline.check(tmp_path, gpu_pipeline.Video(4, lambda: 0), (1,))
