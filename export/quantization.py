"""INT8: the large matrix products of a stage, by ONNX Runtime's own quantizer.

Weights are 8-bit with one scale per output channel, activations 8-bit with one scale per tensor that the graph measures
as it runs: no calibration data can miss a user's video, and on nano it is both more exact and faster than scales
calibrated beforehand (docs/cpu.md). Everything else, and every tensor between stages, stays float32. The graph holds
standard operators only (`DynamicQuantizeLinear`, `MatMulInteger`); on a CPU ONNX Runtime fuses them into one kernel.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

NAME = "int8"

FORMS = frozenset({"default", "ort"})
"""Forms of a stage that an INT8 bundle has: those for a CPU. TensorRT measures no scales while it runs."""

SMALLEST = 32
"""A product with fewer rows or columns of weights than this stays float32: it takes no time worth saving."""

FLOAT_STAGES: Mapping[str, str] = {
    "conditional_memory": "decides what is remembered; a decision that flips changes every later frame",
    "mask_prompt": "its products are resampling and permutation matrices, not learned weights",
    "text_prompt": "one row per sentence",
    "prompt_encoder": "a few rows per object, in coordinates",
}
"""Stages that stay float32 as a whole, and why. A stage that misses its threshold does so, too (`export.bundle`)."""

FLOAT_OPERATORS: Mapping[str, str] = {
    "Conv": "first convolutions see pixels and masks, and integer convolutions gain nothing at these sizes",
    "ConvTranspose": "the mask decoder's upscaling makes the logits themselves",
    "Gemm": "heads: one row per object (masks' hypernetworks, scores, pointers)",
    "MatMul of two activations": "attention, and the hypernetworks' product that gives the mask",
}
"""Operators that stay float32, and why."""


def products(model: ir.Model) -> list[str]:
    """Names of the matrix products that INT8 takes: activations times a matrix of weights, large enough to pay."""
    found = []
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.const_value is None or not weight.is_initializer():
            continue
        if weight.dtype == ir.DataType.FLOAT and len(weight.shape) == 2 and min(weight.shape) >= SMALLEST:
            found.append(node.name)
    return found


def quantize(model: ir.Model, names: Collection[str]) -> ir.Model:
    """A copy of `model` (float32, no subgraphs) whose products `names` are INT8. Signature as before.

    `names` must not be empty, for then the quantizer would take every product.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    if not names:
        raise ValueError("no product to quantize")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        ir.save(model.clone(), source, external_data="float.data")
        proto = onnx.load(source, load_external_data=False)
        # the quantizer transposes weights of other products in place, and shapes noted here would contradict it
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


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs advice on preprocessing, which the exporter's graphs have had, through the root logger."""
    logger = logging.getLogger()
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        yield
    finally:
        logger.setLevel(level)
