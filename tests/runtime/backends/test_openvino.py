"""Tests of the OpenVINO backends against ONNX Runtime on the toy bundle."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

import runtime
from helpers.samwise_schedule import A, B, frames, reference, run
from runtime.backends import ov

NANO = Path(__file__).parents[2].parent / "engines" / "nano"


@pytest.fixture(scope="module")
def engine(toy):
    with runtime.load(toy, backend="openvino", threads=1) as engine:
        yield engine


def test_same_results_as_the_plain_loop(engine):
    clip = frames(11)
    logits, _ = run(engine, clip, A, B)
    for got, prompt in zip(logits, (A, B), strict=True):
        np.testing.assert_allclose(got, reference(clip, prompt)[0], rtol=1e-4, atol=1e-4)


def test_file_that_is_not_a_graph_is_refused(engine, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(runtime.BundleError, match="OpenVINO cannot load") as error:
        engine.backend.load(tmp_path / "x.onnx", engine.bundle.manifest.stages["neck"])
    assert "\n" not in str(error.value)


def test_threads_are_checked():
    from runtime.backends.ov import OpenVinoBackend

    with pytest.raises(runtime.BackendError, match="threads"):
        OpenVinoBackend(threads=0)


@pytest.fixture(scope="module")
def nano():
    with runtime.load(NANO, backend="openvino", threads=1) as engine:
        yield engine


@pytest.mark.parametrize("stage", ["hiera_0", "image_encoder"])
def test_split_graph_computes_the_same(nano, stage):
    """With one precision, two parts are one graph."""
    spec = nano.bundle.manifest.stages[stage]
    file = NANO / spec.files["default"]
    arrays = given(nano.bundle, spec)
    nano.backend.load(file, spec).run(**arrays)
    whole = {t.name: arrays[t.name].copy() for t in spec.outputs}

    class Cut(ov.OpenVinoBackend):
        def split(self, model, spec):
            return [(part, "f32") for part in ov.split_graph(model, {"high_res_0", "high_res_1"})]

    again = Cut(threads=1).load(file, spec)
    assert len(again.parts) == 2 and set(again.parts[0].outputs) & set(again.parts[1].inputs)
    for tensor in spec.outputs:
        arrays[tensor.name][:] = np.nan
    again.run(**arrays)
    for name, expected in whole.items():
        assert distance(arrays[name], expected) < 1e-3, name  # nano's tensors are halves


def test_fine_maps_and_decoder_stay_float32(nano):
    """They are float32 to the last bits; the trunk and memory attention are rounded."""
    try:
        rounded = ov.OpenVinoBf16Backend(threads=1)
    except runtime.BackendError:
        pytest.skip("this processor has no bfloat16")
    manifest, error = nano.bundle.manifest, {}
    for stage in ("hiera_0", "hiera_1", "mask_decoder", "memory_attention"):
        spec = manifest.stages[stage]
        arrays, found = given(nano.bundle, spec), []
        for backend in (nano.backend, rounded):
            backend.load(NANO / spec.files["default"], spec).run(**arrays)
            found.append({t.name: arrays[t.name].copy() for t in spec.outputs})
        exact, other = found
        error |= {name: distance(other[name], exact[name]) for name in exact}
    for name in ("high_res_0", "low_res_logits", "iou"):
        assert error[name] < 1e-5, name
    for name in ("vision_0", "vision_1", "conditioned"):
        assert 1e-4 < error[name] < 5e-2, name


def distance(found, expected):
    """Relative L2."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12)


def given(bundle, spec):
    """Seeded inputs and empty outputs of a stage."""
    symbols = {s: bundle.manifest.bounds[s][0] for s in spec.symbols}
    rng = np.random.default_rng(0)
    inputs = {
        t.name: rng.standard_normal(t.resolve(symbols), np.float32).astype(t.dtype)
        if t.dtype.startswith("float")
        else np.full(t.resolve(symbols), int("count" in t.name), t.dtype)
        for t in spec.inputs
    }
    return inputs | {t.name: np.empty(t.resolve(symbols), t.dtype) for t in spec.outputs}
