"""Publication of bundles: atomic replacement, and graphs with the signatures of the manifest."""

import ctypes
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.mixer import BOUNDS, WIDTH, Mixer, mixer, network

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from torch import nn

from export import bundle, publish
from export.onnx import ExportError
from export.stage import Variant
from export.verify import parity
from runtime.bundle.bundle import choose, find
from runtime.bundle.manifest import Manifest
from runtime.errors import UserError
from runtime.metrics import tensor_error

pytestmark = pytest.mark.usefixtures("shared_traces")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines")
    lines = []
    bundle.export_bundle(network(mixer(variants={"ort": "ort"})), out, "toy", report=lines.append)
    return out, lines


def test_published_bundle_is_complete(published):
    out, lines = published
    found = choose(out)
    found.verify()
    manifest = found.manifest
    on_disk = {p.relative_to(out / "toy").as_posix() for p in (out / "toy").rglob("*") if p.is_file()}
    assert set(manifest.files) == on_disk - {"manifest.json"}
    assert manifest.bounds == BOUNDS and manifest.precision == "fp32"
    assert manifest.provenance["checkpoint"] == "none" and "torch" in manifest.provenance["exported_with"]
    report = json.loads((out / "toy" / "parity.json").read_text())
    assert len(report["stages"]) == 4 and all(r["passed"] for r in report["stages"])  # two variants, two sizes
    assert [line for line in lines if line.startswith(("mixer [default]: tracing", "mixer: comparing with torch"))]
    assert re.fullmatch(r"compared in \d+ s", lines[-1])
    assert os.listdir(out) == ["toy"]


def test_graph_has_the_signature_of_the_manifest(published):
    out, _ = published
    spec = choose(out).manifest.stages["mixer"]
    graph = onnx.load(out / "toy" / spec.files["default"]).graph
    dims = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["objects", "slots", 16, WIDTH]
    operators = {n.op_type for n in graph.node}
    assert {"LayerNormalization", "Gelu"} <= operators, "fused by name, not spelled out"
    fused = onnx.load(out / "toy" / spec.files["ort"], load_external_data=False).graph
    assert "MultiHeadAttention" in {n.op_type for n in fused.node}


def test_variants_share_their_weights(published):
    out, _ = published
    weights = sum(p.numel() for p in Mixer().parameters()) * 4
    size = sum(p.stat().st_size for p in (out / "toy" / "graphs").glob("*.data"))
    assert weights * 0.8 < size < weights * 1.3


def test_equal_variants_share_a_file(tmp_path):
    bundle.export_bundle(network(mixer(variants={"ort": "ort", "trt": "plain"})), tmp_path, "toy", check=False)
    files = choose(tmp_path).manifest.stages["mixer"].files
    assert files["trt"] == files["default"] != files["ort"]
    assert len(list((tmp_path / "toy" / "graphs").glob("*.onnx"))) == 2


def test_nothing_of_the_exporting_machine_in_the_graphs(published):
    out, _ = published
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__))).encode()
    for path in (out / "toy").rglob("*.onnx"):
        content = path.read_bytes()
        assert here not in content and b"test_export_bundle" not in content and b".py" not in content
        model = onnx.load(path, load_external_data=False)
        assert not model.metadata_props and not any(n.metadata_props or n.doc_string for n in model.graph.node)


def test_half_bundle(tmp_path):
    bundle.export_bundle(network(mixer()), tmp_path, "toy", precision="fp16")
    manifest = choose(tmp_path).manifest
    spec = manifest.stages["mixer"]
    assert manifest.precision == "fp16" and spec.precision == "fp16"
    assert [t.dtype for t in (*spec.inputs, *spec.outputs)] == ["float16", "int64", "float16", "float32"]
    graph = onnx.load(tmp_path / "toy" / spec.files["default"]).graph
    assert all(
        w.data_type != onnx.TensorProto.FLOAT or w.name.startswith("norm") or len(w.raw_data) <= 1024
        for w in graph.initializer
    )
    session = ort.InferenceSession(str(tmp_path / "toy" / spec.files["default"]))
    y, logits = session.run(None, {"x": np.zeros((1, 1, 16, WIDTH), np.float16), "age": np.zeros((1, 1), np.int64)})
    assert y.dtype == np.float16 and logits.dtype == np.float32 and np.isfinite(logits).all()


def test_stage_beyond_half_gets_wider_islands(tmp_path):
    bundle.export_bundle(network(mixer(gain=300.0)), tmp_path, "toy", precision="fp16")
    spec = choose(tmp_path).manifest.stages["mixer"]
    assert spec.precision == "fp16-matmul", "squares of 300 y overflow; only the products may be half"


def test_stage_outside_the_range_of_half_computes_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle.precision, "POLICIES", ())
    bundle.export_bundle(network(mixer(variants={"ort": "ort"})), tmp_path, "toy", precision="fp16")
    spec = choose(tmp_path).manifest.stages["mixer"]
    assert spec.precision == "fp32" and spec.input("x").dtype == "float16", "the cut keeps its type"


class Drifted(nn.Module):
    """A graph that is not the network: the variant has other weights than the module it is compared with."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, age):
        y, logits = self.inner(x, age)
        return y * 1.001, logits


def drifted():
    good = mixer()
    variants = {"default": Variant(Drifted(good.module))}
    return type(good)(good.spec, good.module, good.sampler, good.bounds, good.sizes, variants)


def test_failing_parity_publishes_nothing(tmp_path):
    with pytest.raises(parity.ParityError, match="stage mixer misses its threshold.*of y is"):
        bundle.export_bundle(network(drifted()), tmp_path, "toy")
    assert os.listdir(tmp_path) == []


def test_failing_clip_publishes_nothing(tmp_path, monkeypatch):
    bad = bundle.replace(network(mixer()), clip=lambda *_: ())
    monkeypatch.setattr(bundle.ExportJob, "clip", lambda *_: [parity.FrameComparison(3, 0.5, 0.1, 0.1, 0.999, 0.05)])
    with pytest.raises(parity.ParityError, match="frame 3 .* 0.5000"):
        bundle.export_bundle(bad, tmp_path, "toy")
    assert os.listdir(tmp_path) == []


def test_a_half_clip_that_misses_is_tried_again_with_stricter_stages(tmp_path, monkeypatch):
    rows = [
        [parity.FrameComparison(3, 0.5, 0.1, 0.1, 0.97, 2.0)],
        [parity.FrameComparison(3, 0.99, 0.1, 0.1, 0.97, 2.0)],
    ]
    monkeypatch.setattr(bundle.ExportJob, "clip", lambda *_: rows.pop(0))
    monkeypatch.setattr(parity, "STAGE_ERROR", {"fp16": (1e-2, 2.5e-4)})  # the second is less than half's rounding
    with_clip = bundle.replace(network(mixer()), clip=lambda *_: ())
    bundle.export_bundle(with_clip, tmp_path, "toy", precision="fp16", check=False)
    assert choose(tmp_path).manifest.stages["mixer"].precision == "fp16" and len(rows) == 2
    monkeypatch.setattr(parity, "require_passed", lambda *_: None)
    bundle.export_bundle(with_clip, tmp_path, "toy", precision="fp16")
    assert choose(tmp_path).manifest.stages["mixer"].precision != "fp16" and not rows


def test_failing_export_keeps_the_old_bundle(tmp_path):
    bundle.export_bundle(network(mixer()), tmp_path, "toy", check=False)
    before = (tmp_path / "toy" / "manifest.json").read_bytes()
    with pytest.raises(parity.ParityError):
        bundle.export_bundle(network(drifted()), tmp_path, "toy")
    assert (tmp_path / "toy" / "manifest.json").read_bytes() == before and os.listdir(tmp_path) == ["toy"]
    choose(tmp_path).verify()


def test_replacement_of_a_bundle_is_one_step(tmp_path):
    """Swapping is one step: no moment without a complete bundle, and nothing else is ever visible to a search."""
    for version in range(3):
        with publish.replacing(tmp_path, "toy") as folder:
            Manifest({"toy": {}}, f"v{version}", "fp32", 64, {}, {}).dump(folder)
            seen = [b.manifest.variant for b in find(tmp_path)]
            assert seen == ([f"v{version - 1}"] if version else [])
    assert [b.manifest.variant for b in find(tmp_path)] == ["v2"] and os.listdir(tmp_path) == ["toy"]


def test_two_renames_where_exchange_is_not_supported(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())  # a C library without renameat2
    test_replacement_of_a_bundle_is_one_step(tmp_path)


def test_leftovers_of_a_killed_export_are_removed(tmp_path):
    dead, own = tmp_path / ".toy.partial-999999999", tmp_path / f".toy.partial-{os.getppid()}"
    dead.mkdir()
    own.mkdir()
    with publish.replacing(tmp_path, "toy") as folder:
        Manifest({"toy": {}}, "v", "fp32", 64, {}, {}).dump(folder)
    assert not dead.exists() and own.exists()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "c:d"])
def test_bad_names(tmp_path, name):
    with pytest.raises(UserError, match="not a plain folder name"):
        bundle.export_bundle(network(), tmp_path, name)


def test_folder_that_is_not_a_bundle_is_not_replaced(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "thesis.txt").write_text("only copy")
    with pytest.raises(UserError, match="is no bundle"):
        bundle.export_bundle(network(), tmp_path, "toy")
    assert (tmp_path / "toy" / "thesis.txt").exists()


def test_out_is_a_file(tmp_path):
    (tmp_path / "engines").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        bundle.export_bundle(network(), tmp_path / "engines", "toy")


def test_unknown_precision(tmp_path):
    with pytest.raises(UserError, match="fp32, fp16"):
        bundle.export_bundle(network(), tmp_path, "toy", precision="int3")


class Fixed(nn.Module):
    def forward(self, x, age):
        return x.reshape(3, -1, 16, WIDTH), x.mean((1, 2))[:, :2] + age.float().mean()


def test_a_dimension_fixed_while_tracing_is_an_error(tmp_path):
    good = mixer()
    bad = type(good)(good.spec, Fixed(), good.sampler, good.bounds, good.sizes, {"default": Variant(Fixed())})
    with pytest.raises(ExportError, match="stage mixer, variant default"):
        bundle.export_bundle(network(bad), tmp_path, "toy")
    assert os.listdir(tmp_path) == []


def test_bounds_must_agree_between_stages(tmp_path):
    first, second = mixer(), mixer(name="second")
    second = type(second)(
        second.spec, second.module, second.sampler, {"objects": (1, 8), "slots": (1, 7)}, second.sizes, second.variants
    )
    with pytest.raises(ExportError, match="stage second: bounds"):
        bundle.export_bundle(network(first, second), tmp_path, "toy", check=False)


def test_tensor_error():
    want = np.array([3.0, 4.0], np.float32)
    error, largest, cosine = tensor_error(want * np.float32(1.01), want)
    assert (error, largest) == pytest.approx((0.01, 0.04), rel=1e-4) and cosine == pytest.approx(1)
    assert tensor_error(np.array([np.nan]), np.array([1.0]))[0] == float("inf")
    assert tensor_error(np.zeros(3), np.zeros(3)) == (0.0, 0.0, 1.0)
    assert tensor_error(np.array([True, False]), np.array([True, True]))[0] == 0.5
