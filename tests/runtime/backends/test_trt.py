"""Tests of the TensorRT backends on fake libraries."""

import sys
from dataclasses import replace

import numpy as np
import pytest

import runtime
from export.tensorrt import build, compare
from helpers import fake_tensorrt
from helpers import toy_samwise as toy
from helpers.fake_cuda import FakeDriver
from helpers.fake_tensorrt import FakeLibrary
from helpers.samwise_schedule import A, B, C, frames, reference, run
from runtime.backends import create
from runtime.backends.trt import TrtBackend
from runtime.backends.trt_rtx import TrtRtxBackend
from runtime.bundle import engine_index
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import Manifest
from runtime.device.cuda import Cuda
from runtime.engine import Engine
from runtime.errors import BackendError, BundleError, InternalError


@pytest.fixture(params=[TrtBackend, TrtRtxBackend])
def backend(request, monkeypatch):
    driver = FakeDriver()
    monkeypatch.setitem(sys.modules, request.param.library, fake_tensorrt)
    monkeypatch.setattr(fake_tensorrt.Runtime, "driver", driver)
    if request.param is TrtRtxBackend:
        monkeypatch.setattr(fake_tensorrt, "Engine", fake_tensorrt.RtxEngine)
    return request.param(device=Cuda(driver))


@pytest.fixture
def bundle(tmp_path, backend):
    bundle = choose(toy.build(tmp_path / "toy"))
    build.build_bundle(bundle, FakeLibrary(backend.library, fake_tensorrt.__version__), [89], report=lambda line: None)
    return choose(bundle.folder)


@pytest.mark.parametrize("prompts", [[A], [A, B, C]])
def test_video_equals_the_plain_loop(bundle, backend, prompts):
    bundle.verify()
    with Engine(bundle, backend) as engine:
        clip = frames(25)
        logits, _ = run(engine, clip, *prompts)
    for got, prompt in zip(logits, prompts, strict=True):
        np.testing.assert_allclose(got, reference(clip, prompt)[0], rtol=1e-5, atol=1e-5)
    assert backend.device.driver.calls["launch"] > 10, "steady frames are replayed"


def test_nothing_is_allocated_for_known_shapes(bundle, backend):
    driver = backend.device.driver
    with Engine(bundle, backend) as engine:
        session = engine.session([runtime.Text(tokens=A)])
        list(session.stream(frames(4 * toy.WINDOW)))
        held = driver.calls["device"]
        list(session.stream(frames(6 * toy.WINDOW, seed=1)))
        assert driver.calls["device"] == held


def test_shapes_are_set_only_when_they_change(bundle, backend):
    spec = bundle.manifest.stages["memory_encoder"]
    stage = backend.load(bundle.folder / spec.files["default"], spec)
    device = backend.device
    arrays = {
        "embedding": device.empty((1, 4, 3), "float32"),
        "map_index": device.constant(np.zeros(1, np.int64)),
        "mask_logits": device.empty((1, 8, 8), "float32"),
        "maskmem_features": device.empty((1, 4, 2), "float32"),
    }
    seen = []
    set_shape = stage.context.set_input_shape
    stage.context.set_input_shape = lambda name, shape: seen.append(name) or set_shape(name, shape)
    stage.run(**arrays)
    stage.run(**arrays)
    assert seen == ["embedding", "map_index", "mask_logits"]
    stage.run(**arrays | {"mask_logits": device.empty((1, 32, 32), "float32")})
    assert seen[3:] == ["mask_logits"]


def test_wrong_arrays_are_refused_before_they_are_read(bundle, backend):
    spec = bundle.manifest.stages["text_1"]
    stage = backend.load(bundle.folder / spec.files["default"], spec)
    new = backend.device.empty
    good = {"text_0_fused": new((2, 3), "float32"), "text_1": new((2, 3), "float32")}
    with pytest.raises(InternalError, match="text_1: text_0_fused must be float32, not float16"):
        stage.run(**good | {"text_0_fused": new((2, 3), "float16")})
    with pytest.raises(InternalError, match=r"text_0_fused of shape \(2, 4\) is outside"):
        stage.run(**good | {"text_0_fused": new((2, 4), "float32")})
    with pytest.raises(InternalError, match="no such tensor more"):
        stage.run(**good, more=new((1,), "float32"))


def test_another_gpu_another_version_and_a_stale_graph_are_refused(bundle, backend, monkeypatch):
    spec = bundle.manifest.stages["neck"]
    file = bundle.folder / spec.files["default"]
    monkeypatch.setattr(backend.device.driver, "capability", 86)
    with pytest.raises(BundleError, match="built for sm_89, this GPU is sm_86; run `python -m export.tensorrt.build"):
        backend.load(file, spec)
    monkeypatch.setattr(backend.device.driver, "capability", 89)
    backend.version = "11.0.0"
    with pytest.raises(BundleError, match=f"built with {backend.library} 10.9.0, this machine has 11.0.0"):
        backend.load(file, spec)


def test_damaged_engine_is_a_one_line_error(bundle, backend):
    for path in (bundle.folder / "engines").rglob("*.engine"):
        path.write_bytes(b"damaged")
    with pytest.raises(BundleError, match="refuses it .Serialization assertion failed. More of it.") as error:
        Engine(bundle, backend)
    assert "\n" not in str(error.value)


def test_an_engine_with_another_signature_is_refused(bundle, backend):
    paths = {p.name.split(".")[0]: p for p in (bundle.folder / "engines").rglob("*.engine")}
    paths["neck"].write_bytes(paths["text_1"].read_bytes())
    with pytest.raises(BundleError, match="embedding.* differ from the manifest"):
        Engine(bundle, backend)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_missing_library_or_gpu_is_a_one_line_error(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=rf"pip install 'samwise-runtime\[{name.replace('_', '-')}\]'"):
        create(name)


@pytest.mark.parametrize("exact", [True, False])
def test_verification_marks_engines_only_if_all_agree(bundle, backend, monkeypatch, exact):
    """`python -m export.verify --backend tensorrt`, at the clip length and memory of the toy."""
    pytest.importorskip("onnx")
    from export.verify import backend_check
    from runtime.bundle import engine_index

    monkeypatch.setattr(
        backend_check, "create", lambda name, threads: create(name, threads) if name == "ort" else backend
    )
    if not exact:
        original = fake_tensorrt.Context.run_graph

        def off(self, shapes, addresses, memory):
            original(self, shapes, addresses, memory)
            for t in self.engine.session.get_outputs():
                if t.name == "text_1":
                    np.frombuffer((fake_tensorrt.ctypes.c_float * 3).from_address(addresses[t.name]), np.float32)[
                        0
                    ] += 1

        monkeypatch.setattr(fake_tensorrt.Context, "run_graph", off)
    rows, _clip = backend_check.check_backend(bundle, backend.name)
    assert all(r.passed for r in rows) is exact
    marks = [e.verified for e in engine_index.read(bundle.folder)]
    if exact:
        assert all(m["89"]["cosine"] > 0.9999 and m["89"]["relative_error"] < 1e-4 for m in marks)
        choose(bundle.folder).verify()
    else:
        assert not any(marks)


@pytest.mark.parametrize("shared", [("trt",), ("cuda", "trt"), ("ort", "trt")])
def test_an_engine_is_found_whichever_variants_share_its_graph(tmp_path, backend, shared):
    folder = toy.build(tmp_path / "toy")
    manifest = Manifest.load(folder)
    stages = {
        name: replace(spec, files={**dict.fromkeys(shared, spec.files["default"]), **spec.files})
        for name, spec in manifest.stages.items()
    }
    replace(manifest, stages=stages).dump(folder)
    library = FakeLibrary(backend.library, fake_tensorrt.__version__)
    build.build_bundle(choose(folder), library, [89], report=lambda line: None)
    with Engine(choose(folder), backend) as engine:
        assert engine.stages.keys() == manifest.stages.keys()


def test_an_engine_is_compared_with_onnx_runtime_before_it_is_published(bundle, backend):
    spec = bundle.manifest.stages["neck"]
    entry = engine_index.find(
        bundle.folder, bundle.manifest, spec, ("default",), backend.library, fake_tensorrt.__version__, 89
    )
    path = bundle.folder / engine_index.FOLDER / entry.file
    assert compare.smallest_cosine(bundle, backend, path, spec) > 0.9999
    here = compare.Comparison(bundle, backend.name)
    here._backend = backend
    assert here(path, spec, (89,)) > 0.9999 and here(path, spec, (120,)) is None


def test_without_a_gpu_nothing_is_compared(bundle, backend):
    spec = bundle.manifest.stages["neck"]
    assert compare.Comparison(bundle, backend.name)(bundle.folder / "x.engine", spec, (89,)) is None
