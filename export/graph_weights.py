"""Weights of the module of a stage from a graph that was exported from it, without the checkpoint.

The stage with random weights is traced again, which tells the tensor of the module behind each constant of the graph.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx as onnx_format
import torch
from onnx import numpy_helper
from torch import Tensor

from runtime.errors import BundleError

from . import onnx
from .stage import Stage

ANONYMOUS = re.compile(r"val_(\d+)")
"""Name of a constant that the exporter computed, for instance a transposed matrix; the number grows in execution."""

HALF = 2.0**-10
"""Precision of a number in a half bundle."""


def load_weights(stage: Stage, path: Path) -> None:
    """Copy the weights of a graph into the module of a stage, which has random weights and the same graph.

    Raises BundleError for another graph.
    """
    traced = onnx.trace(stage).graph.initializers
    fresh = _constants({str(i.name): i.const_value.numpy() for i in traced.values() if i.const_value is not None})
    graph = onnx_format.load(path).graph
    folder = str(path.parent)
    shipped = _constants({i.name.removesuffix("_half"): numpy_helper.to_array(i, folder) for i in graph.initializer})
    if [x.shape for x in fresh.values()] != [x.shape for x in shipped.values()]:
        raise BundleError(f"{path}: not the graph of stage {stage.name} at these sizes")
    state = stage.module.state_dict(keep_vars=False)
    for (name, value), new in zip(fresh.items(), shipped.values(), strict=True):
        _assign(stage, state, name, torch.from_numpy(value.copy()), torch.from_numpy(new.astype(np.float32)))


def _constants(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of floats: those with names by name, then the others in the order of execution."""

    def order(name: str) -> tuple[int, str]:
        found = ANONYMOUS.fullmatch(name)
        return (int(found[1]) + 1, "") if found else (0, name.replace("self_", "own_"))

    return {n: values[n] for n in sorted(values, key=order) if values[n].dtype.kind == "f" and values[n].ndim}


def _assign(stage: Stage, state: Mapping[str, Tensor], name: str, old: Tensor, new: Tensor) -> None:
    """Write one constant to the tensor of the module that it comes from."""
    if name in state:
        state[name].copy_(new)
        return
    if name.startswith("cat"):  # embeddings one below the other
        rows = [embedding for embedding in state.values() if embedding.ndim == 2 and embedding.shape[1] == old.shape[1]]
        for row, value in zip(old, new, strict=True):
            next(x for table in rows for x in table if torch.equal(x, row)).copy_(value)
        return
    for tensor in state.values():
        for view in (
            tensor,
            tensor.mT if tensor.ndim == 2 else tensor,
            tensor.flatten(1).mT if tensor.ndim == 4 else tensor,
        ):
            if view.shape == old.shape and torch.equal(view, old):
                view.copy_(new)
                return
        if (
            old.ndim > 2 and tensor.shape == (1, old.shape[-1]) and torch.equal(tensor.expand(old.shape), old)
        ):  # a row, repeated
            tensor.copy_(new.reshape(-1, old.shape[-1])[:1])
            return
    # tables that are made from sizes alone (rotations, grids) are in no state: they are the same in both graphs
    if not torch.allclose(old, new, rtol=HALF, atol=HALF):
        raise BundleError(
            f"stage {stage.name}: the constant {name} {tuple(old.shape)} comes from no tensor of its module"
        )
