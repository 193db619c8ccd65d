"""Batch composition of training: which batches a size of network is trained on, and how their mix changes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .loader import BatchSpec
from .scene_generator import MOVING


@dataclass(frozen=True, slots=True)
class SamplingSchedule:
    """Batches and their mix. `mix`: progress from 0 to 1, and the part of the steps for each batch spec at that point;
    between two rows the mix changes linearly."""

    batches: tuple[BatchSpec, ...]
    mix: tuple[tuple[float, tuple[float, ...]], ...]

    def probabilities(self, progress: float) -> np.ndarray:
        """Return the probability of each batch spec; their sum is 1. Raises ValueError if `progress` is not in 0..1."""
        for (start, before), (end, after) in pairwise(self.mix):
            if progress <= end:
                part = (progress - start) / (end - start)
                weights = np.array(before) * (1 - part) + np.array(after) * part
                return weights / weights.sum()
        raise ValueError(f"progress is not between 0 and 1: {progress}")


SCHEDULES = {
    # sizes are per process
    "small": SamplingSchedule(
        (
            BatchSpec("image", 1, 5, 4),
            BatchSpec("clip", 8, 1, 4),
            BatchSpec("long12", 12, 1, 3),
            BatchSpec("visual", 8, 1, 6, visual=True),
            BatchSpec("visual_image", 1, 6, 8, visual=True),
            BatchSpec("recognition", 1, 12, 0, visual=True),
            BatchSpec("motion", 8, 2, 2, kinds=MOVING, memory=False),
            # motions that begin in the second window: the memory of the first one is of the wrong object
            BatchSpec("timing", 16, 1, 2, kinds=("later", "earlier")),
        ),
        (
            (0.0, (0.38, 0.0, 0.0, 0.0, 0.14, 0.48, 0.0, 0.0)),
            (0.05, (0.38, 0.05, 0.0, 0.02, 0.16, 0.29, 0.10, 0.0)),
            (0.1, (0.25, 0.15, 0.0, 0.10, 0.16, 0.10, 0.24, 0.0)),
            (0.2, (0.18, 0.22, 0.02, 0.18, 0.12, 0.03, 0.25, 0.0)),
            (0.5, (0.15, 0.27, 0.05, 0.25, 0.10, 0.01, 0.13, 0.04)),
            (1.0, (0.12, 0.35, 0.10, 0.28, 0.05, 0.0, 0.04, 0.06)),
        ),
    ),
    "large": SamplingSchedule(
        (
            BatchSpec("image", 1, 128, 5),
            BatchSpec("clip", 8, 32, 3),
            BatchSpec("long16", 16, 20, 2),
            BatchSpec("long12", 12, 24, 2),
            BatchSpec("visual", 8, 24, 2, visual=True),
            BatchSpec("visual_image", 1, 128, 2, visual=True),
        ),
        (
            (0.0, (0.75, 0.0, 0.0, 0.0, 0.0, 0.25)),
            (0.06, (0.75, 0.10, 0.0, 0.0, 0.0, 0.15)),
            (0.18, (0.40, 0.44, 0.0, 0.0, 0.08, 0.08)),
            (0.4, (0.18, 0.52, 0.08, 0.06, 0.13, 0.03)),
            (1.0, (0.10, 0.42, 0.20, 0.12, 0.14, 0.02)),
        ),
    ),
}
