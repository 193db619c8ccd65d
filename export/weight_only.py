"""Weights in 8 or 4 bits for the large products and embedding tables of a stage, by ONNX Runtime's quantizer.

Each block of `block` weights of a row has its scale (with 4 bits its zero point as well). `MatMulNBits` rounds the
activations of a product to 8 bits with one scale per row and block: with VNNI that is faster than float32, and its
error is that of the weights (docs/notes/cpu.md). Weights stay packed in memory. Which products: as for INT8.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir

from runtime.errors import UserError

BITS = {"int8-weights": 8, "int4-weights": 4}
"""Precision -> bits of a weight."""

LARGEST_BLOCK = {8: 128, 4: 32}
"""Weights that share a scale: the largest power of two that divides a row, up to this. More cost 4 bits accuracy, and
save 8 bits time."""

INTEGER_ACTIVATIONS = 4
"""`accuracy_level` of MatMulNBits with which activations are rounded to 8 bits."""

FEWEST_ROWS = 1024
"""Smaller tables stay float32: they are positions, or too small to matter."""

DOMAIN = "com.microsoft"


def quantize(model: ir.Model, names: Collection[str], bits: int) -> ir.Model:
    """Return a copy of `model` (float32) with `bits` for the weights of the products `names`, and 8 for tables."""
    model = model.clone()
    model.opset_imports[DOMAIN] = 1
    for node in list(model.graph):
        if node.name in names:
            _replace(model.graph, node, _product(model.graph, node, bits))
        elif _is_lookup(node):
            _replace(model.graph, node, _lookup(model.graph, node))
    return model


def block_size(length: int, largest: int) -> int:
    """Return the largest power of two up to `largest` that divides `length`, but at least 32."""
    return max(32, min(largest, length & -length))


def _product(graph: ir.Graph, node: ir.Node, bits: int) -> ir.Node:
    try:
        with _logging_unchanged():
            from onnxruntime.quantization import matmul_nbits_quantizer as library
    except ImportError:
        raise UserError("packed weights need a newer ONNX Runtime: pip install --upgrade onnxruntime") from None

    data, weight = node.inputs
    assert weight is not None and weight.const_value is not None
    matrix = np.ascontiguousarray(weight.const_value.numpy())
    rows, columns = matrix.shape
    block, symmetric = block_size(rows, LARGEST_BLOCK[bits]), bits == 8
    config = library.DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=bits)
    packed, scales, zero_points = library.DefaultWeightOnlyQuantizer(config).qbits_block_quant(matrix)
    arrays = {"packed": packed, "scales": scales} | ({} if symmetric else {"zero_points": zero_points})
    constants = [_constant(graph, f"{weight.name}_{bits}bits_{part}", array) for part, array in arrays.items()]
    sizes = {"K": rows, "N": columns, "bits": bits, "block_size": block, "accuracy_level": INTEGER_ACTIVATIONS}
    return ir.node("MatMulNBits", [data, *constants], sizes, domain=DOMAIN, name=node.name)


def _is_lookup(node: ir.Node) -> bool:
    """Return whether a node reads rows of a large table of weights."""
    table = node.inputs[0] if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 else None
    if table is None or table.const_value is None or not table.is_initializer():
        return False
    values = table.const_value.numpy()
    return values.ndim == 2 and values.dtype == np.float32 and len(values) >= FEWEST_ROWS and values.shape[1] % 32 == 0


def _lookup(graph: ir.Graph, node: ir.Node) -> ir.Node:
    table, rows = node.inputs
    assert table is not None and table.const_value is not None
    values = table.const_value.numpy()
    block = block_size(values.shape[1], LARGEST_BLOCK[8])
    blocks = values.reshape(len(values), -1, block)
    scales = np.maximum(np.abs(blocks).max(-1) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    packed = (np.rint(blocks / scales[..., None]) + 128).astype(np.uint8).reshape(values.shape)
    arrays = {"packed": packed, "scales": scales}
    data, scale = (_constant(graph, f"{table.name}_8bits_{part}", array) for part, array in arrays.items())
    attributes = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    return ir.node("GatherBlockQuantized", [data, rows, scale], attributes, domain=DOMAIN, name=node.name)


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return the weight of this name, new unless another node has it already."""
    if name not in graph.initializers:
        graph.register_initializer(ir.Value(name=name, const_value=ir.Tensor(array, name=name)))
    return graph.initializers[name]


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    ir.convenience.replace_nodes_and_values(graph, old, [old], [new], old.outputs, new.outputs)


@contextmanager
def _logging_unchanged() -> Iterator[None]:
    """Undo what the quantizer's module does to the root logger when it is imported."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
