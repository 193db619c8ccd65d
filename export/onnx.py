"""Stage -> ONNX graphs.

`trace` runs torch's exporter, `tidy` makes the result what the manifest promises (names, symbols, nothing that carries
a path of the machine that exported it), `save` writes the forms of one stage beside one shared file of weights, and
`check` reads a written graph back and refuses it if it is not what the signature says.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from runtime.bundle.manifest import StageSpec, TensorSpec
from runtime.errors import InternalError

from .stage import Form, Stage

OPSET = 20
"""First opset with Gelu as one operator; LayerNormalization is one since 17."""

INLINE_BYTES = 1024
"""Smaller weights stay in the graph file, so that a reader sees axes and scales without the weights."""

PAGE = 4096
"""Alignment of large weights, so that a reader may map the file instead of reading it."""

FORBIDDEN = frozenset(
    {
        "If",
        "Loop",
        "Scan",
        "NonZero",
        "Unique",
        "Compress",
        "NonMaxSuppression",
        "StringNormalizer",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Multinomial",
        "SequenceConstruct",
        "SequenceEmpty",
        "ConcatFromSequence",
        "SplitToSequence",
    }
)
"""Operators whose output shape depends on values, or that branch, or that draw numbers: none belongs in a stage, and
no engine builder takes all of them."""

DOMAINS = frozenset({"", "ai.onnx"})
FUSED_DOMAIN = "com.microsoft"
"""Allowed besides the standard operators in every form but 'default'."""


class ExportError(InternalError):
    """A stage could not be turned into the graph that its signature promises."""


def trace(stage: Stage, form: str = "default", opset: int = OPSET) -> ir.Model:
    """Trace one form of a stage. Weights are shared with the torch module, not copied.

    Raises ExportError that names the stage, for instance when tracing fixed a dimension that must stay symbolic.
    """
    recipe = stage.forms[form]
    args = tuple(stage.sample().values())
    try:
        with torch.no_grad(), _attention(recipe), _quiet():
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
    except Exception as error:  # the exporter raises a dozen unrelated types, with pages of text
        raise ExportError(f"stage {stage.name}, form {form}: tracing failed ({_line(error)})") from error
    model = program.model
    tidy(model, stage.spec, form)
    return model


def tidy(model: ir.Model, spec: StageSpec, form: str = "default") -> None:
    """Name the signature's dimensions, drop doubles and unused parts, strip names of files and functions. In place."""
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
    model.producer_name, model.producer_version = "samwise-runtime", ""
    model.graph.name, model.graph.doc_string, model.doc_string = spec.name, None, None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for values, specs in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        if [v.name for v in values] != [t.name for t in specs]:
            raise ExportError(
                f"stage {spec.name}, form {form}: the graph has {[v.name for v in values]}, the "
                f"signature {[t.name for t in specs]}"
            )
        for value, tensor in zip(values, specs):
            _name_dimensions(value, tensor, f"stage {spec.name}, form {form}")


def save(models: Mapping[str, ir.Model], folder: Path, name: str) -> dict[str, str]:
    """Write the forms of one stage as `folder/name[.form].onnx` and their weights, each once, as `folder/name.data`.

    Returns form -> file name; forms that came out alike share a file. There is no data file if all weights are small.
    The models are not changed.
    """
    data = folder / f"{name}.data"
    places: dict[str, tuple[int, int]] = {}
    written: dict[bytes, str] = {}
    files = {}
    with data.open("wb") as file:
        for form, model in models.items():
            model = model.clone()
            for value in model.graph.initializers.values():
                value.const_value = _outside(value, file, data, places)
            content = ir.to_proto(model).SerializeToString(deterministic=True)
            own = f"{name}.onnx" if form == "default" else f"{name}.{form}.onnx"
            files[form] = written.setdefault(content, own)
            if files[form] == own:
                (folder / own).write_bytes(content)
    if data.stat().st_size == 0:
        data.unlink()
    return files


def check(path: Path, spec: StageSpec, form: str = "default") -> None:
    """Read a written graph back: valid ONNX, the signature's names, types and symbols, no forbidden operator.

    Raises ExportError.
    """
    where = f"{path.name} (stage {spec.name}, form {form})"
    model = onnx.load(path, load_external_data=False)
    domains = DOMAINS if form == "default" else DOMAINS | {FUSED_DOMAIN}
    for node in model.graph.node:
        if node.op_type in FORBIDDEN or node.domain not in domains:
            raise ExportError(f"{where}: operator {node.domain or 'ai.onnx'}::{node.op_type} does not belong in it")
    try:
        onnx.checker.check_model(path, full_check=all(node.domain in DOMAINS for node in model.graph.node))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{where}: not valid ONNX ({_line(error)})") from error
    for values, specs in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        found = [_signature(v) for v in values]
        wanted = [(t.name, t.dtype, tuple(t.shape)) for t in specs]
        if found != wanted:
            raise ExportError(f"{where}: the graph takes or gives {found}, the signature says {wanted}")


def operators(model: ir.Model) -> dict[str, int]:
    """How often each operator occurs, most frequent first."""
    counts: dict[str, int] = {}
    for node in model.graph:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _attention(recipe: Form):
    from .layers.attention import attention_impl

    return attention_impl(recipe.attention)


@contextmanager
def _quiet():
    """Silence the exporter's own warnings: they are about its internals, and errors still come as exceptions."""
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
    """Give a graph's input or output exactly the dimensions of the signature, if they can be meant."""
    found = None if value.shape is None else tuple(value.shape)
    if found is None or len(found) != len(tensor.shape):
        raise ExportError(f"{where}: {tensor.name} has shape {found}, the signature says {tensor.shape}")
    for axis, (have, want) in enumerate(zip(found, tensor.shape)):
        # an output's expression over other symbols is replaced by the signature's name; parity checks that it is true
        if isinstance(have, int) and have != want:
            raise ExportError(
                f"{where}: dimension {axis} of {tensor.name} was fixed to {have} while tracing; it must be {want!r}"
            )
    value.shape = ir.Shape(tensor.shape)
    if value.dtype != ir.DataType[_IR_TYPES[tensor.dtype]]:
        raise ExportError(f"{where}: {tensor.name} is {value.dtype}, the signature says {tensor.dtype}")


_IR_TYPES = {
    "float32": "FLOAT",
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
    "bool": "BOOL",
}


def _outside(value: ir.Value, file, data: Path, places: dict[str, tuple[int, int]]) -> ir.TensorProtocol:
    """Move a large weight to the data file, once per content. Returns what the graph should hold instead."""
    tensor = value.const_value
    if tensor.nbytes < INLINE_BYTES:
        return tensor
    content = tensor.tobytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in places:
        step = PAGE if len(content) >= PAGE else 64
        file.write(bytes(-file.tell() % step))
        places[digest] = (file.tell(), len(content))
        file.write(content)
    offset, length = places[digest]
    return ir.ExternalTensor(
        data.name, offset, length, tensor.dtype, shape=tensor.shape, name=value.name, base_dir=data.parent
    )


def _signature(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    dtype = next((name for name, ir_name in _IR_TYPES.items() if ir_name == kind), kind)
    return value.name, dtype, tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)


def _line(error: BaseException, limit: int = 300) -> str:
    """The first telling line of an error, without the pages that follow."""
    lines: Iterable[str] = (line.strip() for line in f"{error.__cause__ or error}".splitlines())
    text = next((line for line in lines if line and not line.startswith(("Failed to", "==", "##", "-"))), "")
    return (text or type(error).__name__)[:limit]
