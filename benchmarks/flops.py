"""Floating-point operations of a stage, and the peak rate of matrix products on this machine.

Only products count (MatMul, Gemm, Conv, ConvTranspose), as in the quoted peak of a machine. A multiply-add is two
operations.
Shapes are reported by ONNX Runtime in one run without optimisation, so dynamic sizes need no inference.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import StageSpec


def stage_flops(bundle: Bundle, spec: StageSpec, inputs: Mapping[str, np.ndarray]) -> float:
    """Floating-point operations of one call of a stage on `inputs`."""
    file = bundle.folder / spec.files["default"]
    graph = onnx.load(str(file), load_external_data=False).graph
    weights = {t.name: tuple(t.dims) for t in graph.initializer}
    nodes = {n.name: n for n in graph.node}
    total = 0
    for event in _profile(file, inputs):
        node = nodes.get(event["name"].removesuffix("_kernel_time"))
        if node is not None:
            total += _operations(node, _shapes(event, "input_type_shape"), _shapes(event, "output_type_shape"), weights)
    return float(total)


def _profile(file: Path, inputs: Mapping[str, np.ndarray]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_profiling, options.log_severity_level = True, 3
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    return [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def _shapes(event: Mapping, key: str) -> list[list[int]]:
    return [next(iter(entry.values())) for entry in event["args"].get(key, [])]


def _operations(node: onnx.NodeProto, inputs: list[list[int]], outputs: list[list[int]], weights: Mapping) -> int:
    if node.op_type in ("MatMul", "Gemm"):
        turned = node.op_type == "Gemm" and any(x.name == "transA" and x.i for x in node.attribute)
        first = weights.get(node.input[0], inputs[0])
        return 2 * prod(outputs[0]) * (first[0] if turned else first[-1])
    if node.op_type == "Conv":
        return 2 * prod(outputs[0]) * prod(weights[node.input[1]][1:])
    if node.op_type == "ConvTranspose":
        return 2 * prod(inputs[0]) * prod(weights[node.input[1]][1:])
    return 0


def matmul_peak(seconds: float = 0.5, side: int = 1536) -> float:
    """Measure operations per second of a large float32 product: best of numpy's BLAS and ONNX Runtime, `seconds` each.

    On the machine of the committed figures ONNX Runtime is nearly twice as fast as numpy's OpenBLAS.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((side, side), np.float32) for _ in range(2))
    square = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (side, side)) for name in "abc"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["a", "b"], ["c"])], "product", square[:2], square[2:]
    )
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    best = float("inf")
    for product in (lambda: a @ b, lambda: session.run(None, {"a": a, "b": b})):
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
