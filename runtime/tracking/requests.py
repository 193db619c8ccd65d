"""What objects ask of a picture in SAM 2, and what they are told: plain values between the schedule and the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .memory_selection import Recall
from .state import Clicks

NOTHING = Clicks(np.zeros((2, 2), np.float32), np.full(2, -1, np.int64))
"""The decoder's prompt where there is none: an empty click and the padding point that ends every prompt."""


@dataclass(slots=True)
class Picture:
    """The maps of one frame on the device, each (1, ...)."""

    embedding: Any
    embedding_no_memory: Any
    high_res_0: Any
    high_res_1: Any


@dataclass(frozen=True, slots=True)
class Query:
    """What one object asks of a picture.

    points     decoder points with the padding point at their end; None: no point at all, not even padding
    multimask  whether the best of masks 1..3 is wanted rather than mask 0
    logits     (s, s) float32 mask logits as dense prompt
    recall     memory to look at; None: none
    bare       without memory: leave the no-memory vector out (pointer of a mask prompt)
    """

    points: Clicks | None
    multimask: bool
    logits: np.ndarray | None = None
    recall: Recall | None = None
    bare: bool = False

    @property
    def fill(self) -> tuple[int, int]:
        return (0, 0) if self.recall is None else self.recall.fill

    @property
    def plain(self) -> bool:
        """Whether it is the query of a frame that is only tracked."""
        return self.points is NOTHING and self.logits is None


@dataclass(frozen=True, slots=True)
class Decoded:
    """The answer to one query, on the host: see `prompt_decoder` in `docs/architecture.md`."""

    low_res_logits: np.ndarray
    all_logits: np.ndarray | None
    ious: np.ndarray
    selected: int
    score: float
    pointer: np.ndarray
    memory_tokens: tuple[int, int]


def square_mask(mask_hw: np.ndarray, side: int) -> np.ndarray:
    """A bool mask at the network's size, (side, side) bool: antialiased bilinear resize, then at least one half."""
    from PIL import Image

    if mask_hw.shape == (side, side):
        return mask_hw
    picture = Image.fromarray(np.ascontiguousarray(mask_hw, np.float32))
    # half is a common value where sizes are round; what rounding took from it does not count
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)) >= 0.5 - 1e-6
