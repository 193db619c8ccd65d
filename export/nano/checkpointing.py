"""Checkpoint files: the training state of a run, and averaged weights in the layout of official checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module

from ..models.samwise import Samwise
from .config import from_dict, to_dict

FORMAT = 2
"""Version of the training state. Format 1, without this key, used other names."""


def write_atomic(data: dict[str, Any], path: Path) -> None:
    """Save so that a reader never sees an incomplete file."""
    part = path.with_suffix(".part")
    torch.save(data, part)
    os.replace(part, path)


def state_path(folder: Path, rank: int = 0) -> Path:
    """Return the file of a process. Rank 0 stores everything, the others the optimizer state of the weights they
    own."""
    return folder / (f"last.{rank}.pth" if rank else "last.pth")


def write_state(state: dict[str, Any], folder: Path, rank: int) -> None:
    write_atomic(
        {"format": FORMAT, **state} if rank == 0 else {"optimizer": state["optimizer"]}, state_path(folder, rank)
    )


def read_state(folder: Path, rank: int, processes: int, device: torch.device) -> dict[str, Any]:
    """Read the training state with the optimizer state of this rank. Raises SystemExit if it does not fit this run."""
    path = state_path(folder)
    state = torch.load(path, map_location=device, weights_only=True)
    if state.get("format") != FORMAT:
        raise SystemExit(f"{path}: training state of another version; start a new run in another folder (--out)")
    if state["processes"] != processes:
        raise SystemExit(f"{path}: the run had {state['processes']} processes; resume it with as many (--processes)")
    if rank:
        state |= torch.load(state_path(folder, rank), map_location=device, weights_only=True)
    return state


def cloned_state(module: Module) -> dict[str, torch.Tensor]:
    """Copy all tensors of a module: a view would store the whole shared memory in the file."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def export_weights(model: Samwise, path: Path) -> None:
    """Write {'model', 'config'} in the layout of official checkpoints: matrices in half, vectors in single
    precision."""
    state = {
        name: value.cpu().half() if value.is_floating_point() and value.ndim >= 2 else value.cpu()
        for name, value in model.state_dict().items()
    }
    write_atomic({"model": state, "config": to_dict(model.config)}, path)


def load_model(path: Path, device: str = "cpu") -> Samwise:
    """Load the network of a checkpoint {'model', 'config'}, in evaluation mode."""
    data = torch.load(path, map_location=device, weights_only=True)
    model = Samwise(from_dict(data["config"])).to(device)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in data["model"].items()})
    return model.eval()
