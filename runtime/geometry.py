"""Prompts that point at an object: clicks, a box, a mask.

Plain values that check themselves when they are made; what needs the size of the video is checked by `scaled` and
`checked`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import PromptError

MAX_POINTS = 256


@dataclass(frozen=True, slots=True)
class Points:
    """Clicks on one object: `points` (K,2) x, y in source pixels (0..1 if `normalized`), `labels` (K,) 1 yes, 0 no."""

    points: Sequence[Sequence[float]]
    labels: Sequence[int]
    normalized: bool = False

    def __post_init__(self) -> None:
        points = _floats(self.points, "points")
        if points.ndim != 2 or points.shape[1] != 2 or not 1 <= len(points) <= MAX_POINTS:
            raise PromptError(f"points must be (K,2) with K in 1..{MAX_POINTS}, not {points.shape}")
        labels = integers(self.labels, "labels")
        if len(labels) != len(points) or not set(labels) <= {0, 1}:
            raise PromptError(f"labels must be one 1 (object) or 0 (background) for each of the {len(points)} points")
        _check_unit(points, self.normalized, "points")
        object.__setattr__(self, "points", tuple(map(tuple, points.tolist())))
        object.__setattr__(self, "labels", labels)

    @property
    def label(self) -> str:
        return f"{len(self.points)} click" + ("s" if len(self.points) > 1 else "")

    def scaled(self, height: int, width: int) -> np.ndarray:
        """Points in source pixels, float32 (K,2). Raises PromptError for a point outside the picture."""
        return _scaled(self.points, self.normalized, height, width, "point")


@dataclass(frozen=True, slots=True)
class Box:
    """A box around one object: `xyxy` = left, top, right, bottom in source pixels (0..1 if `normalized`)."""

    xyxy: Sequence[float]
    normalized: bool = False

    def __post_init__(self) -> None:
        box = _floats(self.xyxy, "box")
        if box.shape != (4,):
            raise PromptError(f"a box is 4 numbers (left, top, right, bottom), not {box.shape}")
        if not (box[0] < box[2] and box[1] < box[3]):
            raise PromptError(f"box {box.tolist()}: left must be less than right, and top less than bottom")
        _check_unit(box, self.normalized, "box")
        object.__setattr__(self, "xyxy", tuple(box.tolist()))

    @property
    def label(self) -> str:
        return "box"

    def scaled(self, height: int, width: int) -> np.ndarray:
        """Box in source pixels, float32 (4,). Raises PromptError if it lies outside the picture."""
        corners = self.xyxy[:2], self.xyxy[2:]
        return _scaled(corners, self.normalized, height, width, "box corner").reshape(4)


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A mask of one object: `array` (H,W), true or non-zero inside, at source size."""

    array: np.ndarray

    def __post_init__(self) -> None:
        try:
            array = np.asarray(self.array)
        except ValueError:
            raise PromptError("a mask prompt must be one (H,W) array") from None
        if array.ndim != 2 or array.dtype.kind not in "biuf" or 0 in array.shape:
            raise PromptError(f"a mask prompt must be a (H,W) array of numbers, not {array.dtype} {array.shape}")
        array = array > 0
        if not array.any():
            raise PromptError("the mask prompt is empty: no pixel of it is set")
        object.__setattr__(self, "array", array)

    @property
    def label(self) -> str:
        return "mask"

    def checked(self, height: int, width: int) -> np.ndarray:
        """The mask, bool (height,width). Raises PromptError if it was made for another size."""
        if self.array.shape != (height, width):
            raise PromptError(
                f"the mask prompt is {_size(self.array.shape)}, the video {_size((height, width))}; "
                "give a mask of the video's size"
            )
        return self.array


def integers(values: Any, name: str) -> tuple[int, ...]:
    """A flat list of integers as a tuple. Raises PromptError that calls it `name`."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise PromptError(f"{name} must be a flat list of integers") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise PromptError(f"{name} must be a flat list of integers")
    return tuple(int(v) for v in array)


def _floats(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise PromptError(f"{name} must be numbers") from None
    if not np.isfinite(array).all():
        raise PromptError(f"{name} must be finite numbers")
    return array


def _check_unit(values: np.ndarray, normalized: bool, name: str) -> None:
    if normalized and not ((values >= 0) & (values <= 1)).all():
        raise PromptError(f"normalized {name} must lie in 0..1")


def _scaled(values: Sequence[Sequence[float]], normalized: bool, height: int, width: int, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # what no float32 holds becomes infinite, and lies outside every picture
        points = np.array(values, np.float32)
    size = np.array([width, height], np.float32)
    points = points * size if normalized else points
    outside = ((points < 0) | (points > size)).any(axis=1)
    if outside.any():
        x, y = points[int(outside.argmax())].tolist()
        raise PromptError(f"{name} ({x:g}, {y:g}) lies outside the picture, {_size((height, width))}")
    return points


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
