"""Checkpoint files: the training state of a run, and averaged weights in the layout of official checkpoints."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from ..models.samwise import Samwise

FORMAT = 2
"""Version of the training state. Format 1, without this key, used other names."""


def write_atomic(data: dict[str, Any], path: Path) -> None:
    """Save so that a reader never sees an incomplete file."""
    part = path.with_suffix(".part")
    torch.save(data, part)
    os.replace(part, path)


def state_path(folder: Path, rank: int = 0) -> Path:
    """Return the file of a process. Rank 0 stores everything, others the optimizer state of the weights they own."""
    return folder / (f"last.{rank}.pth" if rank else "last.pth")


def read_state(folder: Path, rank: int, processes: int, device: torch.device) -> dict[str, Any]:
    """Read the training state with the optimizer state of this rank. Raises SystemExit if it does not fit this run."""
    path = state_path(folder)
    state = torch.load(path, map_location=device, weights_only=True)
    if state.get("format") != FORMAT:
        raise SystemExit(f"{path}: training state of another version; start a new run in another folder (--out)")
    if state["processes"] != processes:
        raise SystemExit(f"{path}: the run had {state['processes']} processes; resume it with as many (--processes)")
    return state | torch.load(state_path(folder, rank), map_location=device, weights_only=True) if rank else state


def cloned_state(module: Module) -> dict[str, torch.Tensor]:
    """Copy all tensors of a module: a view would store the whole shared memory in the file."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def export_weights(model: Samwise, path: Path) -> None:
    """Write {'model', 'config'} in the layout of official checkpoints: matrices in half precision, vectors single."""
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    weights = {name: x.half() if x.is_floating_point() and x.ndim >= 2 else x for name, x in state.items()}
    write_atomic({"model": weights, "config": asdict(model.config)}, path)
