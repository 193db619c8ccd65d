"""Writer of toy bundles: ONNX graphs in text form, their signatures, a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx.parser

from runtime.bundle.manifest import Manifest, StageSpec, TensorSpec

SYMBOLS = {
    "T": "frames",
    "L": "tokens",
    "B": "objects",
    "E": "maps",
    "U": "pictures",
    "S": "slots",
    "P": "pointers",
    "K": "prompt_tokens",
    "V": "kept",
    "Q": "mask_side",
}
"""Letter of a dimension in the graphs -> its name in the manifest."""
TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64", onnx.TensorProto.BOOL: "bool"}


def write(folder: Path, graphs: Mapping[str, str], graph_safe: bool | None = None, **fields: Any) -> Path:
    """Write a bundle of `graphs` into `folder` and return it. `fields` are those of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    stages, files = {}, {}
    for name, text in graphs.items():
        model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]>\n' + text)
        onnx.checker.check_model(model, full_check=True)
        data = model.SerializeToString()
        (folder / f"{name}.onnx").write_bytes(data)
        files[f"{name}.onnx"] = hashlib.sha256(data).hexdigest()
        sides = (tuple(_tensor(v) for v in values) for values in (model.graph.input, model.graph.output))
        stages[name] = StageSpec(name, *sides, files={"default": f"{name}.onnx"}, graph_safe=graph_safe)
    Manifest(**{"variant": "toy", "precision": "fp32", "stages": stages, "files": files} | fields).dump(folder)
    return folder


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(SYMBOLS[d.dim_param] if d.dim_param else d.dim_value for d in kind.shape.dim)
    return TensorSpec(value.name, TYPES[kind.elem_type], shape)
