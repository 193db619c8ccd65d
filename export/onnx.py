"""ONNX graphs of stages.

`trace` runs torch's exporter, `tidy` gives the graph the names and symbols of the signature and removes paths of the
exporting machine, `save` writes the variants of one stage with one shared file of weights, and `check` compares a
written graph with the signature.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from unittest.mock import patch

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.rewriter.rules.common import slice_split_rule

from runtime.bundle.manifest import DTYPES, StageSpec, TensorSpec, weight_files
from runtime.errors import InternalError

from . import weight_only
from .decompose import decomposed_in_place
from .layers.attention import attention_impl
from .stage import Stage

OPSET = 20
"""First opset with the operator Gelu; LayerNormalization exists since 17."""

INLINE_BYTES = 1024
"""Smaller weights stay in the graph file, so that axes and scales can be read without the weights."""

PAGE = 4096
"""Alignment of large weights, so that the file can be memory-mapped."""

_FORBIDDEN = """
If Loop Scan NonZero Unique Compress NonMaxSuppression StringNormalizer RandomNormal RandomNormalLike RandomUniform
RandomUniformLike Bernoulli Multinomial SequenceConstruct SequenceEmpty ConcatFromSequence SplitToSequence
"""
FORBIDDEN = frozenset(_FORBIDDEN.split())
"""Operators with data-dependent shapes, control flow or random numbers; no engine builder supports all of them."""

DOMAINS = frozenset({"", "ai.onnx"})
FUSED_DOMAIN = "com.microsoft"
"""Allowed besides the standard operators in every variant except 'default', and where weights are packed."""


Place: TypeAlias = tuple[str, int, int]
"""Data file, offset and length of a weight."""


class ExportError(InternalError):
    """A stage could not be exported as a graph with its signature."""


def trace(stage: Stage, variant: str = "default", opset: int = OPSET) -> ir.Model:
    """Trace one variant of a stage. Weights are shared with the torch module, not copied.

    Raises ExportError, for instance if tracing fixed a dimension that must stay symbolic.
    """
    recipe = stage.variants[variant]
    args = tuple(stage.sample().values())
    try:
        with torch.no_grad(), attention_impl(recipe.attention_impl), _quiet(), decomposed_in_place(), _linear_search():
            program = torch.onnx.export(
                recipe.module,
                args,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=stage.dynamic_shapes(),
                input_names=[t.name for t in stage.spec.inputs],
                output_names=[t.name for t in stage.spec.outputs],
                verbose=False,
            )
    except Exception as error:  # the exporter raises many unrelated types, with long texts
        raise ExportError(f"stage {stage.name}, variant {variant}: tracing failed ({_first_line(error)})") from error
    model = program.model
    tidy(model, stage.spec, variant)
    return model


def tidy(model: ir.Model, spec: StageSpec, variant: str = "default") -> None:
    """Name the dimensions as in the signature, remove duplicate and unused parts and names of files, in place."""
    model.functions.clear() if not _calls_functions(model) else passes.InlinePass()(model)
    for step in (
        passes.CommonSubexpressionEliminationPass(),
        passes.DeduplicateInitializersPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        step(model)
    for node in model.graph:
        if node.domain == FUSED_DOMAIN:  # ONNX Runtime computes an output that has a name
            for value in node.outputs:
                value.name = value.name if value.uses() or value.is_graph_output() else ""
    model.producer_name, model.producer_version = "samwise-runtime", ""
    model.graph.name, model.graph.doc_string, model.doc_string = spec.name, None, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for values, specs in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        if [v.name for v in values] != [t.name for t in specs]:
            raise ExportError(
                f"stage {spec.name}, variant {variant}: the graph has {[v.name for v in values]}, "
                f"the signature has {[t.name for t in specs]}"
            )
        for value, tensor in zip(values, specs, strict=True):
            _name_dimensions(value, tensor, f"stage {spec.name}, variant {variant}")


def save(models: Mapping[str, ir.Model], folder: Path, name: str) -> dict[str, str]:
    """Write the variants of one stage as `folder/name[.variant].onnx` and their weights as `folder/name.data`.

    Returns variant -> file name. Equal variants share a file, equal weights a place in the data file; without large
    weights there is none. Weights that a stage has in common with one whose file it may use (`weight_files`) are not
    written again. The models are not changed.
    """
    own, *others = weight_files(f"{name}.onnx")
    data = folder / own
    stored = {digest: place for other in others for digest, place in _stored_weights(folder / other).items()}
    written: dict[bytes, str] = {}
    files = {}
    with data.open("wb") as file:
        for variant, model in models.items():
            model = model.clone()
            for value in model.graph.initializers.values():
                value.const_value = _externalize(value, file, data, stored)
            content = ir.to_proto(model).SerializeToString(deterministic=True)
            file_name = f"{name}.onnx" if variant == "default" else f"{name}.{variant}.onnx"
            files[variant] = written.setdefault(content, file_name)
            if files[variant] == file_name:
                (folder / file_name).write_bytes(content)
    if data.stat().st_size == 0:
        data.unlink()
    return files


def check(path: Path, spec: StageSpec, variant: str = "default") -> None:
    """Check a written graph: valid ONNX, names, types and symbols of the signature, no forbidden operator.

    Raises ExportError.
    """
    where = f"{path.name} (stage {spec.name}, variant {variant})"
    model = onnx.load(path, load_external_data=False)
    fused = variant != "default" or spec.precision in weight_only.BITS
    domains = DOMAINS | {FUSED_DOMAIN} if fused else DOMAINS
    for node in model.graph.node:
        if node.op_type in FORBIDDEN or node.domain not in domains:
            raise ExportError(f"{where}: operator {node.domain or 'ai.onnx'}::{node.op_type} is not allowed")
    try:
        onnx.checker.check_model(path, full_check=all(node.domain in DOMAINS for node in model.graph.node))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{where}: not valid ONNX ({_first_line(error)})") from error
    for values, specs in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        actual = [_signature(v) for v in values]
        expected = [(t.name, t.dtype, tuple(t.shape)) for t in specs]
        if actual != expected:
            raise ExportError(f"{where}: the graph has {actual}, the signature has {expected}")


@contextmanager
def _linear_search() -> Iterator[None]:
    """Let the exporter try its only rule with two roots on nodes of their type alone.

    On every other node, the rule would list all nodes of the graph before it fails: nearly all of its time.
    """
    rule, attempt = slice_split_rule, slice_split_rule.try_rewrite

    def only_slices(model: ir.Model, graph: ir.Graph, node: ir.Node, **options: Any) -> Any:
        return attempt(model, graph, node, **options) if node.op_type == "Slice" else None

    with patch.object(rule, "try_rewrite", only_slices):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, which are about its internals; errors are exceptions."""
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _calls_functions(model: ir.Model) -> bool:
    return any(node.op_identifier() in model.functions for node in model.graph)


def _name_dimensions(value: ir.Value, tensor: TensorSpec, where: str) -> None:
    """Give an input or output of a graph the dimensions of the signature. Raises ExportError if they do not fit."""
    shape = None if value.shape is None else tuple(value.shape)
    if shape is None or len(shape) != len(tensor.shape):
        raise ExportError(f"{where}: {tensor.name} has shape {shape}, the signature has {tensor.shape}")
    for axis, (have, want) in enumerate(zip(shape, tensor.shape, strict=True)):
        # an expression over other symbols becomes the name in the signature; the parity check tests that it holds
        if isinstance(have, int) and have != want:
            raise ExportError(
                f"{where}: dimension {axis} of {tensor.name} was fixed to {have} while tracing; it must be {want!r}"
            )
    value.shape = ir.Shape(tensor.shape)
    if value.dtype != ir.DataType[_IR_TYPES[tensor.dtype]]:
        raise ExportError(f"{where}: {tensor.name} is {value.dtype}, the signature has {tensor.dtype}")


_IR_TYPES = {name: "FLOAT" if name == "float32" else name.upper() for name in DTYPES}
"""Types of a manifest -> names in ONNX."""


def _stored_weights(data: Path) -> dict[str, Place]:
    """Return the places of the weights in a data file, by content, as the graphs beside it name them."""
    stored: dict[str, Place] = {}
    for path in sorted(data.parent.glob(f"{data.stem}*.onnx")) if data.is_file() else ():
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            entry = {e.key: e.value for e in tensor.external_data}
            if entry.get("location") == data.name:
                offset, length = int(entry["offset"]), int(entry["length"])
                with data.open("rb") as file:
                    file.seek(offset)
                    stored[hashlib.sha256(file.read(length)).hexdigest()] = (data.name, offset, length)
    return stored


def _externalize(value: ir.Value, file: BinaryIO, data: Path, stored: dict[str, Place]) -> ir.TensorProtocol:
    """Write a large weight to the data file, once per content, and return its reference for the graph."""
    tensor = value.const_value
    if tensor.nbytes < INLINE_BYTES:
        return tensor
    content = tensor.tobytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in stored:
        step = PAGE if len(content) >= PAGE else 64
        file.write(bytes(-file.tell() % step))
        stored[digest] = (data.name, file.tell(), len(content))
        file.write(content)
    location, offset, length = stored[digest]
    return ir.ExternalTensor(
        location, offset, length, tensor.dtype, shape=tensor.shape, name=value.name, base_dir=data.parent
    )


def _signature(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    dtype = next((name for name, ir_name in _IR_TYPES.items() if ir_name == kind), kind)
    return value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)


def _first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first informative line of an error of the exporter."""
    lines: Iterable[str] = (line.strip() for line in f"{error.__cause__ or error}".splitlines())
    text = next((line for line in lines if line and not line.startswith(("Failed to", "==", "##", "-"))), "")
    return (text or type(error).__name__)[:limit]
