"""Goldens, synthetic weights and inputs of ReferSAM."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import synth
from .synth_recipes import REFERSAM

GOLDENS = Path(__file__).parents[1] / "goldens" / "refersam"

META = json.loads((GOLDENS / "public_vitb_bert.json").read_text())
SHAPES = json.loads((GOLDENS / "shapes.json").read_text())


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """Read the arrays of `public_vitb_bert` or `units`."""
    return dict(np.load(GOLDENS / f"{name}.npz"))


def weights(prefix: str = "") -> dict[str, Tensor]:
    """Make the synthetic tensors under `prefix`, which is removed from their names."""
    shapes = {k: v for k, v in SHAPES.items() if k.startswith(prefix)}
    made = synth.make_state_dict(REFERSAM, shapes, META["weights"]["seed"])
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in made.items()}


def unit_input(name: str, shape: Iterable[int], scale: float = 1.0) -> Tensor:
    """Make the input `unit.<name>` of the stand-alone modules."""
    return torch.from_numpy(synth.make_tensor(f"unit.{name}", tuple(shape), 101, scale))


def pixels() -> Tensor:
    """Make the golden picture (1,3,448,448), resized and normalised."""
    picture = META["image"]
    image = synth.make_image(picture["height"], picture["width"], picture["seed"])
    return torch.from_numpy(synth.normalize_image(synth.resize_image(image, *META["input_size"])))[None]


def error(ours: Tensor | np.ndarray, theirs: np.ndarray) -> float:
    """Return the relative L2 distance."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Add noise to every parameter, also to tables and gates of zeros or ones, so that each affects the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() < 2 or any(word in name for word in ("pos_embed", "rel_pos", "embed", "gamma")):
                p += 0.2 * torch.randn(p.shape, generator=generator)
    return model
