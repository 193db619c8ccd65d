"""Prompts of SAM 3's tracker: masks at the sizes that it uses, and at most 16 points.

A mask is remembered as it looks at the size of the video: resized there, cut at one half, and brought to the side
of low-res logits. Of several masks on one frame each takes its pixels away from the ones before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ...imaging.antialias import resize_antialiased
from ...imaging.upsample import SeparableUpsampler, enlarger
from ...tracking.prompt_inputs import PointInputs, PromptEncoder

MASK_LOGIT = np.float32(1024.0)
"""Logit inside a mask that was given; its negative outside."""


MAX_POINTS = 16
"""Points that the network takes; of more, the first and the last 8."""


class Sam3PromptEncoder(PromptEncoder):
    """Converts prompts; masks keep the size of the source."""

    def check(self, points: PointInputs) -> PointInputs:
        """Return the points that the network takes; warns of those that it does not."""
        count, half = len(points.labels), self.max_points // 2
        if count <= self.max_points:
            return points
        warnings.warn(f"of {count} points on one object and frame the first and the last {half} are used", stacklevel=2)
        chosen = np.r_[:half, count - half : count]
        return PointInputs(points.coords[chosen], points.labels[chosen])

    def mask(self, mask_hw: np.ndarray) -> np.ndarray:
        """Return the mask at source size."""
        return mask_hw


class MaskResizer:
    """Resizes of mask prompts for videos of `size` (H, W): P is the side of a mask that prompts, s that of logits."""

    def __init__(self, size: tuple[int, int], mask_side: int, low_res_side: int) -> None:
        self._size, self._mask_side, self._low_res_side = size, mask_side, low_res_side

    @cached_property
    def _enlarger(self) -> SeparableUpsampler:
        return enlarger(self._low_res_side, self._low_res_side, self._mask_side // self._low_res_side)

    def to_mask(self, mask_hw: np.ndarray) -> np.ndarray:
        """Resize a bool mask of the video to (P,P), float32 in 0..1."""
        resized: np.ndarray = resize_antialiased(mask_hw[None], (self._mask_side, self._mask_side))[0]
        return resized

    def to_source(self, mask_pp: np.ndarray) -> np.ndarray:
        """Resize a mask (P,P) to the video, bool (H,W)."""
        resized: np.ndarray = resize_antialiased(mask_pp[None], self._size)[0] > 0.5
        return resized

    def to_logits(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """Return the low-res logits (N,s,s) of masks (H,W) of the video; a later mask is before the others."""
        given = np.stack([np.where(mask, MASK_LOGIT, -MASK_LOGIT) for mask in masks])
        for i, mask in enumerate(masks):
            given[:i, mask] = -MASK_LOGIT
        return resize_antialiased(given, (self._low_res_side, self._low_res_side))

    def detected(self, logits_ss: np.ndarray) -> np.ndarray:
        """Return the mask of a detection, low-res logits, as bool (P,P)."""
        mask: np.ndarray = self._enlarger.masks(logits_ss[None])[0]
        return mask
