"""Graphs of equal stages, traced once in a test run: torch's exporter takes seconds per graph.

A test module that exports whole networks takes the fixture `shared_traces`. Two stages are equal when their signature,
sizes, code, settings and weights are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import onnx
import onnx_ir as ir
import torch

from export import onnx as graphs
from export.stage import Stage

_INTERNAL = vars(torch.nn.Module()).keys() - {"training", "_parameters", "_buffers", "_modules"}
_traced: dict[str, bytes] = {}
_trace = graphs.trace


def trace(stage: Stage, variant: str = "default", opset: int = graphs.OPSET) -> ir.Model:
    """Return what `export.onnx.trace` returns, from the bytes of an equal stage if there was one."""
    key = fingerprint(stage, variant, opset)
    if key in _traced:
        return ir.from_proto(onnx.ModelProto.FromString(_traced[key]))
    model = _trace(stage, variant, opset)
    _traced[key] = ir.to_proto(model).SerializeToString()
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
