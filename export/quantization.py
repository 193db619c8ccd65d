"""INT8 quantization of the large matrix products of a stage, by ONNX Runtime's quantizer.

Weights are 8-bit with one scale per output channel, activations 8-bit with one scale per tensor that the graph measures
as it runs: no calibration data can miss a user's video, and on nano it is both more exact and faster than scales
calibrated beforehand (docs/notes/cpu.md). The graph holds standard operators only (`DynamicQuantizeLinear`,
`MatMulInteger`); on a CPU ONNX Runtime fuses them into one kernel.

Every tensor between stages stays float32, and so do stages without `int8_ok` and all other operators: convolutions see
pixels and masks and gain nothing at these sizes, transposed convolutions make the logits themselves, `Gemm` stands in
heads with one row per object, and products of two activations are attention and the hypernetworks' masks.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir

from . import weight_only

NAME = "int8"

VARIANTS = frozenset({"default", "ort"})
"""Forms of a stage in a quantized bundle: those for a CPU. TensorRT does not measure scales at run time."""

Quantizer = Callable[[ir.Model, Collection[str]], ir.Model]

SMALLEST = 32
"""Products with fewer rows or columns of weights than this stay float32: they take too little time."""


def products(model: ir.Model) -> list[str]:
    """Return the names of the products to quantize: activations times a large enough matrix of weights."""
    found = []
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.const_value is None or not weight.is_initializer():
            continue
        if weight.dtype == ir.DataType.FLOAT and len(weight.shape) == 2 and min(weight.shape) >= SMALLEST:
            found.append(node.name)
    return found


def quantize(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Return a copy of `model` (float32, no subgraphs) with the products `names` in INT8. Signature as before.

    `names` must not be empty: the quantizer would then take every product.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not names:
        raise ValueError("no product to quantize")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        ir.save(model.clone(), source, external_data="float.data")
        proto = onnx.load(source, load_external_data=False)
        # the quantizer transposes weights of other products in place, which would contradict these shapes
        del proto.graph.value_info[:]
        source.write_bytes(proto.SerializeToString())
        quantize_dynamic(
            source,
            file,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(names),
            use_external_data_format=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        quantized = ir.load(file)
        for value in quantized.graph.initializers.values():
            value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
    return quantized


EIGHT, FOUR = ({name: partial(weight_only.quantize, bits=bits)} for name, bits in weight_only.BITS.items())
QUANTIZERS: Mapping[str, Mapping[str, Quantizer]] = {NAME: {NAME: quantize}} | dict(
    zip(weight_only.BITS, (EIGHT, FOUR | EIGHT), strict=True)
)
"""Precision of a bundle -> what a stage may have, by its own precision, from the fastest to the most exact; float32
follows."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the root logger: the quantizer recommends preprocessing that the exporter's graphs already have had."""
    logger = logging.getLogger()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)
