"""Prompt encoding on the host: points, boxes and masks as the SAM 2 network takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PromptError
from ..prompts import Box, Mask, Points


@dataclass(frozen=True, slots=True)
class PointInputs:
    """Points of one object on one frame in network pixels: `coords` (K,2) float32, `labels` (K,) int64.

    Labels are 1 on the object, 0 beside it, 2 and 3 for the corners of a box, -1 for padding.
    """

    coords: np.ndarray
    labels: np.ndarray

    def __add__(self, other: PointInputs) -> PointInputs:
        return PointInputs(np.concatenate((self.coords, other.coords)), np.concatenate((self.labels, other.labels)))


PADDING_POINT = PointInputs(np.zeros((1, 2), np.float32), np.full(1, -1, np.int64))
"""The point that ends every prompt."""

NO_POINTS = PointInputs(np.zeros((2, 2), np.float32), np.full(2, -1, np.int64))
"""Points of a request without a prompt: an empty one and the padding point."""

PromptInputs = PointInputs | np.ndarray
"""A prompt of one object on one frame: points (a box is two of them), or a bool mask (I,I) at the network's size."""


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Converts prompts for one network: `image_size` pixels a side, `max_points` points per object and frame."""

    bundle: str
    image_size: int
    max_points: int

    def parse(self, prompt: Any, size: tuple[int, int]) -> PromptInputs:
        """Convert a prompt, or a list of a box and points that belong together, given on a source of `size` (H, W).

        Raises PromptError.
        """
        parts = tuple(prompt) if isinstance(prompt, (list, tuple)) else (prompt,)
        if any(not isinstance(p, (Points, Box, Mask)) for p in parts) or not parts:
            raise PromptError(
                "a prompt must be runtime.Points, runtime.Box, runtime.Mask, or [Box, Points] together, "
                f"not {type(prompt).__name__}"
            )
        masks = [p for p in parts if isinstance(p, Mask)]
        boxes = [p for p in parts if isinstance(p, Box)]
        points = [p for p in parts if isinstance(p, Points)]
        if (masks and len(parts) > 1) or len(boxes) > 1:
            raise PromptError("one object takes one mask alone, or at most one box, with or without points, per frame")
        if masks:
            return self.mask(masks[0].checked(*size))
        geometric: list[Points | Box] = [*boxes, *points]
        inputs = [self.points(part, size) for part in geometric]
        return self.check(sum(inputs[1:], inputs[0]))

    def points(self, part: Points | Box, size: tuple[int, int]) -> PointInputs:
        """Convert points or a box. Raises PromptError for those outside the source."""
        part.scaled(*size)
        if isinstance(part, Box):
            coords, labels = np.array(part.xyxy).reshape(2, 2), np.array([2, 3])
        else:
            coords, labels = np.array(part.points), np.array(part.labels)
        return self.scale(coords, labels, size, part.normalized)

    def scale(self, coords: np.ndarray, labels: np.ndarray, size: tuple[int, int], normalized: bool) -> PointInputs:
        """Scale coordinates (K,2) of a source of `size` (H, W), or in 0..1 if `normalized`, to network pixels."""
        coords = np.asarray(coords, np.float32)
        if not normalized:
            coords = coords / np.array(size[::-1], np.float32)
        return PointInputs(coords * np.float32(self.image_size), np.asarray(labels, np.int64))

    def check(self, points: PointInputs) -> PointInputs:
        """Return the same points. Raises PromptError when they are more than the bundle takes."""
        if len(points.labels) > self.max_points:
            raise PromptError(
                f"{len(points.labels)} points on one object and frame are more than the "
                f"{self.max_points} that {self.bundle} takes; clear old ones"
            )
        return points

    def mask(self, mask_hw: np.ndarray) -> np.ndarray:
        """Resize a bool mask to the network's size (I,I). Raises PromptError for one that vanishes there."""
        mask = square_mask(mask_hw, self.image_size)
        if not mask.any():
            raise PromptError(
                f"the mask prompt is empty at the network's {self.image_size}x{self.image_size} pixels; "
                "give a larger mask"
            )
        return mask


def square_mask(mask_hw: np.ndarray, side: int) -> np.ndarray:
    """Resize a bool mask to (side, side): antialiased bilinear, then at least one half."""
    from PIL import Image

    if mask_hw.shape == (side, side):
        return mask_hw
    image = Image.fromarray(np.ascontiguousarray(mask_hw, np.float32))
    # half is a common value where sizes are round; what rounding took from it does not count
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)) >= 0.5 - 1e-6
