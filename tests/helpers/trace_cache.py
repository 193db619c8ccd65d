"""Graphs of equal stages, traced once in a test run: torch's exporter takes seconds per graph.

A test module that exports whole networks takes the fixture `shared_traces`, whose folder the processes of a run share.
Two stages are equal when their signature, sizes, code, settings and weights are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from export import onnx as graphs
from export.stage import Stage

_INTERNAL = vars(torch.nn.Module()).keys() - {"training", "_parameters", "_buffers", "_modules"}
_trace = graphs.trace


def trace(folder: Path, stage: Stage, variant: str = "default", opset: int = graphs.OPSET) -> ir.Model:
    """Return what `export.onnx.trace` returns, from the file of an equal stage if there is one in `folder`."""
    file = folder / fingerprint(stage, variant, opset)
    if file.exists():
        return ir.from_proto(onnx.ModelProto.FromString(file.read_bytes()))
    model = _trace(stage, variant, opset)
    part = file.with_suffix(f".{os.getpid()}")  # another process may trace the same stage, or read the file
    part.write_bytes(ir.to_proto(model).SerializeToString())
    part.replace(file)
    return model


def fingerprint(stage: Stage, variant: str, opset: int) -> str:
    """Return the sha256 of everything that decides the graph."""
    recipe = stage.variants[variant]
    digest = hashlib.sha256(repr((opset, recipe.attention_impl, stage.spec, stage.bounds, stage.sizes)).encode())
    for part in _content(recipe.module):
        digest.update(part)
    return digest.hexdigest()


def _content(value: Any) -> Iterator[bytes]:
    if isinstance(value, torch.nn.Module):
        yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
        yield from _content({k: v for k, v in vars(value).items() if k not in _INTERNAL})
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield value.detach().contiguous().numpy().tobytes()
    elif isinstance(value, dict):
        for key, item in value.items():
            yield repr(key).encode()
            yield from _content(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _content(item)
    else:
        yield repr(value).encode()
