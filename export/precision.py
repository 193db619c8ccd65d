"""Mixed precision, written into the graph.

Engines without a precision switch (TensorRT 11) and ONNX Runtime alike compute with the types in the graph, so a half
bundle is a graph whose tensors are float16 except where range or rounding need float32. `POLICIES` lists the choices
from fastest to most exact; `export.bundle` takes, for each stage, the first one that agrees with torch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


def _operators(names: str) -> frozenset[str]:
    return frozenset(names.split())


FLOAT, HALF, BFLOAT = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
MAX_FLOAT16 = 65504.0
"""Largest finite float16; larger constants (attention masks of -1e9) are set to it."""

REDUCTIONS = _operators(
    "LayerNormalization RMSNormalization GroupNormalization InstanceNormalization BatchNormalization "
    "LpNormalization MeanVarianceNormalization ReduceMean ReduceSum ReduceSumSquare ReduceL2 ReduceProd "
    "ReduceLogSumExp CumSum GlobalAveragePool LogSoftmax"
)
"""Sums over many terms: they overflow (squares in a norm) or lose the small terms."""

FUNCTIONS = _operators("Exp Log Pow Sqrt Reciprocal Sin Cos Tan Sigmoid Softplus Softsign Div Mod GridSample")
"""Functions that are steep or divide by small numbers: half resolves neither an epsilon of 1e-6 nor more than 2000
positions in a map."""

SOURCES = _operators(
    "Cast Range ConstantOfShape EyeLike Constant OneHot CastLike QuantizeLinear DequantizeLinear DynamicQuantizeLinear"
)
"""They make a float32 from another type; their readers cast it."""

FOLLOWERS = _operators(
    "Reshape Transpose Squeeze Unsqueeze Slice Split Expand Identity Flatten Gather GatherElements GatherND "
    "Concat Pad Tile Where Add Sub Mul Neg Abs Relu Clip Min Max MaxPool ReduceMax AveragePool Resize "
    "DepthToSpace SpaceToDepth"
)
"""They keep the type of their inputs: float32 if all are, so that a reshape adds no cast to a float32 region."""

COSTLY = _operators(
    "MatMul Gemm Conv ConvTranspose Attention MultiHeadAttention Einsum FusedMatMul GroupQueryAttention"
)
"""Operators in which half precision saves time. With `only_costly` only these are half."""

HALF_SLOTS = {"Resize": (0,), "OneHot": (), "Pad": (0, 2)}
"""Inputs that take the type of the data; of the other operators all float inputs do."""


@dataclass(frozen=True, slots=True)
class PrecisionPolicy:
    """Choice of the half operators.

    The softmax of an attention is half where its products are, or fused attention is lost (its kernels keep float32
    inside). With `only_costly` nothing is half but the operators of `COSTLY`.
    """

    name: str
    only_costly: bool = False


POLICIES = (PrecisionPolicy("fp16"), PrecisionPolicy("fp16-matmul", only_costly=True))
"""From fastest to most exact; after them comes `FP32`: half inputs and outputs, float32 inside."""

FP32 = "fp32"

WIDE = "ort"
"""Variant of a half bundle that computes in float32: the one that the backends of CPUs prefer."""


def to_half(model: ir.Model, policy: PrecisionPolicy | None, half: Collection[str]) -> ir.Model:
    """Return a copy of `model` under `policy` (None: float32 inside) with the inputs and outputs in `half` as float16.

    Weights are converted lazily, when the graph is saved. The model must have no subgraphs.
    """
    model = model.clone()
    graph = model.graph
    casts: dict[tuple[int, ir.DataType], ir.Value] = {}
    _skip_bfloat(graph)
    for value in graph.inputs:
        if value.name in half and value.dtype == FLOAT:
            value.type = ir.TensorType(HALF)
    for node in list(graph):
        if any(v is not None and v.dtype in (FLOAT, HALF) for v in (*node.inputs, *node.outputs)):
            _convert(graph, node, _wanted(node, policy), casts)
    for index, value in enumerate(graph.outputs):
        _convert_output(graph, index, value, HALF if value.name in half else FLOAT)
    _drop_unused(graph)
    return model


def emulated(model: ir.Model) -> ir.Model:
    """Return a copy of a half graph that computes in float32 and rounds every half result, as half hardware does.

    On a CPU, ONNX Runtime runs half operators in float32 and drops the rounding between them, which hides an
    overflow or a loss of digits. It keeps casts of the graph, so each result gets a pair of them here. The signature is
    unchanged.
    """
    model = model.clone()
    graph = model.graph
    outputs = {id(v) for v in graph.outputs}
    for name, value in list(graph.initializers.items()):
        if value.dtype == HALF:
            tensor = _lazy(value.const_value, FLOAT, name)
            value.type, value.const_value = ir.TensorType(FLOAT), tensor
    for value in graph.inputs:
        if value.dtype == HALF and value.uses():
            _read_as_float(graph, value, list(value.uses()))
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == FLOAT.value and node.inputs[0].dtype == FLOAT:
            continue
        for value in node.outputs:
            if value.dtype != HALF:
                continue
            readers = list(value.uses())
            if node.op_type != "Cast":
                _round(graph, node, value, id(value) in outputs)
            elif readers:
                _read_as_float(graph, value, readers)
    return model


def widened(model: ir.Model) -> ir.Model:
    """Return a copy of a half graph that computes in float32 all that it computes in half, with the same signature.

    ONNX Runtime has few half operators for a CPU: it casts before and behind each of the others, and such a cast keeps
    it from fusing operators. Weights stay half, each behind a cast that is folded at load: both graphs share a file.
    """
    model = model.clone()
    graph = model.graph
    nodes, types = list(graph), [value.dtype or FLOAT for value in graph.outputs]
    for value in (*graph.inputs, *list(graph.initializers.values())):
        if value.dtype == HALF and value.uses():
            _read_as_float(graph, value, list(value.uses()))
    for node in nodes:
        kind = node.attributes["to"].as_int() if node.op_type == "Cast" else None
        if kind in (FLOAT.value, HALF.value) and node.inputs[0].dtype == FLOAT:
            _skip_cast(graph, node)
            continue
        if kind == HALF.value:
            node.attributes["to"] = ir.AttrInt64("to", FLOAT.value)
        for value in node.outputs:
            if value.dtype == HALF:
                value.type = ir.TensorType(FLOAT)
    for index, (value, dtype) in enumerate(zip(list(graph.outputs), types, strict=True)):
        _convert_output(graph, index, value, dtype)
    return model


def _skip_cast(graph: ir.Graph, node: ir.Node) -> None:
    """Let the readers of a cast read what it casts; only an output keeps it."""
    result = node.outputs[0]
    for reader, index in list(result.uses()):
        reader.replace_input_with(index, node.inputs[0])
    if not result.is_graph_output():
        graph.remove(node)


def _read_as_float(graph: ir.Graph, value: ir.Value, readers: list) -> None:
    """Give the readers of a half value a float32 copy of it."""
    node = ir.node("Cast", [value], {"to": FLOAT.value}, name=f"{value.name}_widened")
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{value.name}_widened", ir.TensorType(FLOAT), value.shape
    producer = value.producer()
    graph.insert_after(producer, node) if producer else graph.insert_before(graph[0], node)
    for reader, index in readers:
        reader.replace_input_with(index, result)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, is_output: bool) -> None:
    """Round `value`, now float32, to half and back for all its readers."""
    readers, shape = list(value.uses()), value.shape
    narrow = ir.node("Cast", [value], {"to": HALF.value}, name=f"{value.name}_narrowed")
    half = narrow.outputs[0]
    half.name, half.type, half.shape = f"{value.name}_narrowed", ir.TensorType(HALF), shape
    value.type = ir.TensorType(FLOAT)
    graph.insert_after(node, narrow)
    if is_output:
        half.name, value.name = value.name, f"{value.name}_exact"
        graph.outputs[next(i for i, v in enumerate(graph.outputs) if v is value)] = half
    if readers:
        _read_as_float(graph, half, readers)


def _skip_bfloat(graph: ir.Graph) -> None:
    """Remove rounding to bfloat16 and back, as SAM 2 keeps its memory: half has three more bits, and engines for GPUs
    before Ampere cannot be built with that type."""
    for node in list(graph):
        if node.op_type != "Cast" or node.attributes["to"].as_int() != BFLOAT.value:
            continue
        value, readers = node.outputs[0], list(node.outputs[0].uses())
        if value.is_graph_output() or any(reader.op_type != "Cast" for reader, _ in readers):
            continue
        for reader, index in readers:
            reader.replace_input_with(index, node.inputs[0])
        graph.remove(node)


def _wanted(node: ir.Node, policy: PrecisionPolicy | None) -> ir.DataType:
    op = node.op_type
    if policy is None or op in REDUCTIONS or op in FUNCTIONS or op in SOURCES:
        return FLOAT
    if op == "Softmax":
        return HALF if not policy.only_costly and _between_products(node) else FLOAT
    if op in COSTLY:
        return HALF
    if op in FOLLOWERS:
        data = [v for v in node.inputs if v is not None and v.dtype in (FLOAT, HALF) and v.const_value is None]
        if op in HALF_SLOTS:
            data = data[:1]
        if policy.only_costly and op in ("Add", "Sub", "Mul"):
            return FLOAT
        return FLOAT if data and all(v.dtype == FLOAT for v in data) else HALF
    return FLOAT if policy.only_costly else HALF


def _between_products(node: ir.Node) -> bool:
    """Return whether this is the softmax of an attention: scores from a matrix product, weights into another."""
    value = node.inputs[0]
    for _ in range(4):  # a scale and a mask may stand between
        producer = value.producer() if value is not None else None
        if producer is None:
            return False
        if producer.op_type == "MatMul":
            break
        value = next((v for v in producer.inputs if v is not None and v.const_value is None), None)
    else:
        return False
    return any(user.op_type == "MatMul" for user in node.outputs[0].consumers())


def _convert(graph: ir.Graph, node: ir.Node, wanted: ir.DataType, casts: dict) -> None:
    slots = HALF_SLOTS.get(node.op_type) if wanted == HALF else None
    if node.op_type not in ("Cast", "CastLike"):
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (FLOAT, HALF):
                continue
            want = wanted if slots is None or index in slots else FLOAT
            if node.op_type == "Resize" and index > 0:
                want = FLOAT  # scales are float32 whatever the data is
            if value.dtype != want:
                node.replace_input_with(index, _cast(graph, node, value, want, casts))
    for value in node.outputs:
        if value.dtype == FLOAT:
            value.type = ir.TensorType(wanted)  # not `.dtype = `: clones share their type objects


def _cast(graph: ir.Graph, before: ir.Node, value: ir.Value, to: ir.DataType, casts: dict) -> ir.Value:
    """Return the value in the other type: a converted weight, or one cast for all readers."""
    key = (id(value), to)
    if key not in casts:
        suffix = "half" if to == HALF else "float"
        if value.is_initializer() and not value.is_graph_input():
            tensor = _lazy(value.const_value, to, f"{value.name}_{suffix}")
            casts[key] = ir.Value(name=tensor.name, type=ir.TensorType(to), shape=value.shape, const_value=tensor)
            graph.register_initializer(casts[key])
        else:
            node = ir.node("Cast", [value], {"to": to.value}, name=f"{value.name}_to_{suffix}")
            result = node.outputs[0]
            result.name, result.type, result.shape = f"{value.name}_{suffix}", ir.TensorType(to), value.shape
            producer = value.producer()
            # right behind the producer, so that it stands before every reader
            graph.insert_after(producer, node) if producer else graph.insert_before(graph[0], node)
            casts[key] = result
    return casts[key]


def _lazy(tensor: ir.TensorProtocol, to: ir.DataType, name: str) -> ir.TensorProtocol:
    def evaluate() -> ir.TensorProtocol:
        array = tensor.numpy()
        if to == HALF:
            finite = np.isfinite(array)
            array = np.where(finite, np.clip(array, -MAX_FLOAT16, MAX_FLOAT16), array).astype(np.float16)
        return ir.Tensor(array.astype(to.numpy()), name=name)

    return ir.LazyTensor(evaluate, dtype=to, shape=tensor.shape, name=name)


def _convert_output(graph: ir.Graph, index: int, value: ir.Value, want: ir.DataType) -> None:
    if value.dtype not in (FLOAT, HALF) or value.dtype == want:
        return
    node = ir.node("Cast", [value], {"to": want.value}, name=f"{value.name}_to_output")
    result = node.outputs[0]
    result.name, value.name = value.name, f"{value.name}_inner"
    result.type, result.shape = ir.TensorType(want), value.shape
    graph.append(node)
    graph.outputs[index] = result


def _drop_unused(graph: ir.Graph) -> None:
    for name in [n for n, v in graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del graph.initializers[name]
