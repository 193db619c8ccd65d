"""Sizes of the nano network (the modules of SAMWISE, narrow and shallow, for small images) and its training batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..layers.hiera import HieraConfig
from ..layers.roberta import TextConfig
from ..models.sam import SamConfig
from ..models.samwise import CrossModalAdapterConfig, SamwiseConfig
from .dataset import PIXELS
from .loader import BatchSpec
from .scene_generator import MOVING
from .tokenizer import MAX_TOKENS, VOCABULARY

_HIERA = HieraConfig(width=48, heads=1, blocks=(1, 3, 1, 1), windows=(8, 8, 8, 4), global_blocks=(), positions=8)
_SAM = SamConfig(
    PIXELS, _HIERA, width=128, memory_width=32, memory_layers=2, memory_hidden=256, decoder_heads=4, decoder_hidden=256,
    iou_hidden=64, mask_channels=(4, 8, 16, 32), fuser_blocks=1, text_width=96,
)  # fmt: skip
_TEXT = TextConfig(VOCABULARY, MAX_TOKENS + 2, width=96, hidden=192, layers=3, heads=4)
_ADAPTER = CrossModalAdapterConfig(width=96, heads=3, patches=(4, 8, 4))
_SMALL = SamwiseConfig(_SAM, _TEXT, _ADAPTER, text_stages=(1, 2, 3), conditional_hidden=64, conditional_heads=4)
_LARGE_HIERA = replace(_HIERA, blocks=(1, 2, 4, 1), windows=(8, 8, 16, 8))
_LARGE_SAM = replace(_SAM, image_size=2 * PIXELS, hiera=_LARGE_HIERA, text_width=128)
_LARGE_TEXT = replace(_TEXT, width=128, hidden=384, layers=6)
_LARGE_ADAPTER = CrossModalAdapterConfig(width=128, heads=4, patches=(8, 8, 8))
_LARGE = replace(_SMALL, sam=_LARGE_SAM, text=_LARGE_TEXT, adapter=_LARGE_ADAPTER, text_stages=(2, 4, 6))
SIZES = {"small": _SMALL, "large": _LARGE}
"""`small`: five million parameters for 128 px, which two CPU cores can train in two hours; the shipped size. `large`:
six million for 256 px, with four times the arithmetic per frame, for a GPU.

HSA patches are chosen so that at stride 32, and in the small network at stride 16 too, one patch is the whole image:
one attention over all frames sees a motion of any extent. Most of the small trunk lies before the first adapter, where
all sentences of a clip share it.
"""


@dataclass(frozen=True, slots=True)
class SamplingSchedule:
    """Batches (per process) and their mix. `mix`: progress from 0 to 1, and the part of the steps for each batch spec
    at that point; between two rows the mix changes linearly."""

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


_SMALL_BATCHES = (
    BatchSpec("image", 1, 5, 4),
    BatchSpec("clip", 8, 1, 4),
    BatchSpec("long12", 12, 1, 3),
    BatchSpec("visual", 8, 1, 6, visual=True),
    BatchSpec("visual_image", 1, 6, 8, visual=True),
    BatchSpec("recognition", 1, 12, 0, visual=True),
    BatchSpec("motion", 8, 2, 2, kinds=MOVING, memory=False),
    # motions that begin in the second window: the memory of the first one is of the wrong object
    BatchSpec("timing", 16, 1, 2, kinds=("later", "earlier")),
)
_SMALL_MIX = (
    (0.0, (0.38, 0.0, 0.0, 0.0, 0.14, 0.48, 0.0, 0.0)),
    (0.05, (0.38, 0.05, 0.0, 0.02, 0.16, 0.29, 0.10, 0.0)),
    (0.1, (0.25, 0.15, 0.0, 0.10, 0.16, 0.10, 0.24, 0.0)),
    (0.2, (0.18, 0.22, 0.02, 0.18, 0.12, 0.03, 0.25, 0.0)),
    (0.5, (0.15, 0.27, 0.05, 0.25, 0.10, 0.01, 0.13, 0.04)),
    (1.0, (0.12, 0.35, 0.10, 0.28, 0.05, 0.0, 0.04, 0.06)),
)
_LARGE_BATCHES = (
    BatchSpec("image", 1, 128, 5),
    BatchSpec("clip", 8, 32, 3),
    BatchSpec("long16", 16, 20, 2),
    BatchSpec("long12", 12, 24, 2),
    BatchSpec("visual", 8, 24, 2, visual=True),
    BatchSpec("visual_image", 1, 128, 2, visual=True),
)
_LARGE_MIX = (
    (0.0, (0.75, 0.0, 0.0, 0.0, 0.0, 0.25)),
    (0.06, (0.75, 0.10, 0.0, 0.0, 0.0, 0.15)),
    (0.18, (0.40, 0.44, 0.0, 0.0, 0.08, 0.08)),
    (0.4, (0.18, 0.52, 0.08, 0.06, 0.13, 0.03)),
    (1.0, (0.10, 0.42, 0.20, 0.12, 0.14, 0.02)),
)
SCHEDULES = {
    "small": SamplingSchedule(_SMALL_BATCHES, _SMALL_MIX),
    "large": SamplingSchedule(_LARGE_BATCHES, _LARGE_MIX),
}
