"""Bundles with weights in 8 or 4 bits: which weights, how exact, and what happens above the error limit."""

import json
import logging
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import onnx_ir as ir

from export import bundle, quantization, weight_only
from export.__main__ import parser
from export.verify import parity
from helpers.mixer import WIDTH, mixer, network
from runtime.bundle.bundle import choose

QUANTIZER = "onnxruntime.quantization.matmul_nbits_quantizer"

pytestmark = [
    pytest.mark.usefixtures("shared_traces"),
    pytest.mark.skipif(find_spec(QUANTIZER) is None, reason="this ONNX Runtime packs no weights"),
]


@pytest.fixture(scope="module", params=sorted(weight_only.BITS))
def published(request, tmp_path_factory):
    out, before = tmp_path_factory.mktemp("engines"), logging.getLogger().handlers[:]
    stage = mixer(variants={"ort": "ort", "trt": "wide"})
    folder = bundle.export_bundle(network(stage), out, "toy", precision=request.param)
    assert logging.getLogger().handlers == before
    return folder


def test_large_products_have_packed_weights(published):
    manifest = choose(published).manifest
    spec = manifest.stages["mixer"]
    assert manifest.precision == spec.precision and set(spec.files) == {"default", "ort"}
    choose(published).verify()
    for file in spec.files.values():
        graph = onnx.load(published / file).graph
        weights = {w.name: w for w in graph.initializer}
        packed = [node for node in graph.node if node.op_type == "MatMulNBits"]
        assert len(packed) >= 2, "qkv and out"
        for node in packed:
            sizes = {a.name: a.i for a in node.attribute}
            assert sizes["bits"] == weight_only.BITS[spec.precision]
            assert np.prod(weights[node.input[1]].dims) * 8 == sizes["K"] * sizes["N"] * sizes["bits"]
        large = [
            w for w in graph.initializer if np.prod(w.dims) >= WIDTH * WIDTH and w.data_type == onnx.TensorProto.FLOAT
        ]
        assert sum(int(np.prod(w.dims)) for w in large) <= 2 * 4 * WIDTH * WIDTH, "only the head's matrix is float32"


def test_results_differ_within_the_limit(published):
    precision = choose(published).manifest.precision
    errors = [row["error"] for row in json.loads((published / parity.FILE).read_text())["stages"]]
    assert len(errors) == 4 and all(1e-4 < e < parity.STAGE_ERROR[precision][0] for e in errors), errors


@pytest.mark.parametrize("limit, expected", [(1.0, "int4-weights"), (1.2e-2, "int8-weights"), (1e-6, "fp32")])
def test_a_stage_has_the_fewest_bits_within_the_limit(tmp_path, monkeypatch, limit, expected):
    monkeypatch.setattr(parity, "STAGE_ERROR", {"int4-weights": (limit,)})
    bundle.export_bundle(network(mixer()), tmp_path, "toy", precision="int4-weights")
    manifest = choose(tmp_path).manifest
    assert manifest.precision == "int4-weights" and manifest.stages["mixer"].precision == expected


@pytest.mark.parametrize("rows, packed", [(2000, True), (1000, False)])
def test_large_embedding_tables_have_8_bits(rows, packed):
    table = np.random.default_rng(0).standard_normal((rows, 96)).astype(np.float32)
    table[3] = 0
    found, kinds = looked_up(table, [[3, 5], [rows - 1, 0]])
    assert ("GatherBlockQuantized" in kinds) == packed
    expected = table[[[3, 5], [rows - 1, 0]]]
    assert np.array_equal(found[0, 0], expected[0, 0]), "zeros stay zeros"
    assert np.linalg.norm(found - expected) <= (0.01 if packed else 0) * np.linalg.norm(expected)


def looked_up(table, ids):
    """Return the rows that the quantized graph of a lookup reads, and the operators of the graph."""
    ids_value = ir.Value(name="ids", shape=ir.Shape(["n", 2]), type=ir.TensorType(ir.DataType.INT64))
    weight = ir.Value(name="table", const_value=ir.Tensor(table, name="table"))
    weight.shape, weight.type = ir.Shape(table.shape), ir.TensorType(ir.DataType.FLOAT)
    node = ir.node("Gather", [weight, ids_value], {"axis": 0}, name="lookup")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape(["n", 2, table.shape[1]])
    graph = ir.Graph([ids_value], node.outputs, nodes=[node], initializers=[weight], name="g", opset_imports={"": 20})
    model = weight_only.quantize(ir.Model(graph, ir_version=10), [], 8)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"ids": np.array(ids)})[0], [n.op_type for n in model.graph]


@pytest.mark.parametrize("length, largest, block", [(1024, 128, 128), (4736, 128, 128), (96, 128, 32), (48, 32, 32)])
def test_blocks_divide_rows_where_they_can(length, largest, block):
    assert weight_only.block_size(length, largest) == block


@pytest.mark.parametrize("precision", quantization.QUANTIZERS)
def test_every_precision_is_an_option_and_has_limits(precision):
    assert parser().parse_args(["sam3", "--checkpoint", "x", "--precision", precision]).precision == precision
    assert precision in parity.STAGE_ERROR and precision in parity.MASK_IOU and precision in parity.SCORE_DIFFERENCE
