"""INT8 bundles: large products in 8 bits, the rest unchanged, and refusal above the error limit."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import onnx_ir as ir

from export import bundle, quantization
from export import onnx as graphs
from export.__main__ import parser
from export.verify import parity
from helpers.mixer import WIDTH, mixer, network
from runtime.bundle.bundle import choose

pytestmark = pytest.mark.usefixtures("shared_traces")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    out = tmp_path_factory.mktemp("engines")
    return bundle.export_bundle(network(mixer(variants={"ort": "ort", "trt": "wide"})), out, "toy", precision="int8")


def test_manifest(published):
    manifest = choose(published).manifest
    spec = manifest.stages["mixer"]
    assert manifest.precision == spec.precision == "int8"
    assert set(spec.files) == {"default", "ort"}, "TensorRT cannot read such graphs"
    assert [t.dtype for t in (*spec.inputs, *spec.outputs)] == ["float32", "int64", "float32", "float32"]
    choose(published).verify()


def test_only_large_products_are_integer(published):
    spec = choose(published).manifest.stages["mixer"]
    graph = onnx.load(published / spec.files["default"]).graph
    kinds = [n.op_type for n in graph.node]
    assert kinds.count("MatMulInteger") >= 2, "qkv and out"
    assert "Gemm" in kinds or "MatMul" in kinds, "the head has one row per object and stays float32"
    weights = {w.name: w for w in graph.initializer}
    for node in graph.node:
        assert node.domain == "", "standard operators only"
        if node.op_type == "MatMulInteger":
            weight = weights[node.input[1]]
            assert weight.data_type == onnx.TensorProto.INT8 and min(weight.dims) >= quantization.SMALLEST
            assert weights[node.input[3]].dims[0] == weight.dims[1], "one scale per output channel"
    large = [w for w in graph.initializer if np.prod(w.dims) >= WIDTH * WIDTH and w.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(w.dims)) for w in large) <= 2 * 4 * WIDTH * WIDTH, "only the head's matrix is float32"


def test_int8_results_differ_within_the_limit(published):
    report = json.loads((published / parity.FILE).read_text())
    errors = [row["error"] for row in report["stages"]]
    assert len(errors) == 4 and all(1e-5 < e < parity.STAGE_ERROR["int8"][0] for e in errors), errors


def test_graphs_take_any_size(published):
    spec = choose(published).manifest.stages["mixer"]
    for file in spec.files.values():
        session = ort.InferenceSession(str(published / file))
        for objects, slots in ((1, 1), (4, 7)):
            y, logits = session.run(
                None,
                {"x": np.ones((objects, slots, 16, WIDTH), np.float32), "age": np.zeros((objects, slots), np.int64)},
            )
            assert y.shape == (objects, slots, 16, WIDTH) and np.isfinite(y).all() and np.isfinite(logits).all()


def test_a_stage_that_misses_its_threshold_stays_float(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "STAGE_ERROR", {"int8": (1e-4,)})
    lines = []
    bundle.export_bundle(network(mixer()), tmp_path, "toy", precision="int8", report=lines.append)
    manifest = choose(tmp_path).manifest
    assert manifest.precision == "int8" and manifest.stages["mixer"].precision == "fp32"
    assert any("mixer stays float32" in line for line in lines)
    kinds = {n.op_type for n in onnx.load(tmp_path / "toy" / manifest.stages["mixer"].files["default"]).graph.node}
    assert "MatMulInteger" not in kinds


def test_stages_without_int8_ok_stay_float(tmp_path):
    stage = mixer(int8_ok=False)
    bundle.export_bundle(network(stage), tmp_path, "toy", precision="int8")
    assert choose(tmp_path).manifest.stages[stage.name].precision == "fp32"


def test_graph_without_large_products_is_not_quantized():
    def graph(rows, constant):
        weight = ir.tensor(np.zeros((rows, 64), np.float32), name="w")
        value = ir.Value(
            name="w",
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape((rows, 64)),
            const_value=weight if constant else None,
        )
        x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((5, rows)))
        node = ir.node("MatMul", [x, value], name="product")
        return ir.Model(
            ir.Graph(
                [x] if constant else [x, value],
                node.outputs,
                nodes=[node],
                initializers=[value] if constant else [],
                opset_imports={"": graphs.OPSET},
            ),
            ir_version=10,
        )

    assert quantization.products(graph(64, True)) == ["product"]
    assert quantization.products(graph(quantization.SMALLEST - 1, True)) == []
    assert quantization.products(graph(64, False)) == [], "two activations"
    with pytest.raises(ValueError, match="no product"):
        quantization.quantize(graph(64, False), [])


def test_command_accepts_int8():
    assert parser().parse_args(["samwise", "--checkpoint", "x", "--precision", "int8"]).precision == "int8"


@pytest.mark.slow
def test_a_whole_network_follows_torch_on_the_clip(tmp_path):
    """Every stage of a toy SAMWISE, exported, compared and run as a pipeline on ONNX Runtime."""
    from export.networks import base as networks
    from helpers import toy_exports

    model = toy_exports.samwise()
    bundle.export_bundle(networks.describe("samwise", model), tmp_path, "toy", precision="int8", variants=())
    manifest = choose(tmp_path).manifest
    found = {name: spec.precision for name, spec in manifest.stages.items()}
    assert set(found.values()) == {"int8", "fp32"} and list(found.values()).count("int8") >= 3, found
    assert all(found[name] == "fp32" for name, spec in manifest.stages.items() if not spec.int8_ok)
    assert all(t.dtype != "float16" for s in manifest.stages.values() for t in (*s.inputs, *s.outputs))
    report = json.loads((tmp_path / "toy" / parity.FILE).read_text())
    assert report["clip"] and all(row["passed"] for row in report["clip"])
    assert any(row["error"] > 1e-5 for row in report["clip"]), "the clip saw the INT8 graphs"
