"""Visual prompts: points, a box or a mask of one object."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PromptError, summarize
from .mask_values import NO_LABEL, masks_by_label
from .numbers import check_unmasked, floats, listed

MAX_POINTS = 256
"""Points of one prompt."""


@dataclass(frozen=True, slots=True)
class Points:
    """Points on or beside one object: `points` (K,2) x, y in source pixels (0..1 if `normalized`); `labels` (K,) 1 on
    the object, 0 beside it, as any type of number. One point may be (2,) with a single label."""

    points: npt.ArrayLike
    labels: npt.ArrayLike
    normalized: bool = False

    def __post_init__(self) -> None:
        points = floats(self.points, "points")
        if points.shape == (2,) or (points.ndim == 3 and len(points) == 1 and points.size):
            points = points.reshape(-1, points.shape[-1])
        if points.ndim != 2 or points.shape[1] != 2 or not 1 <= len(points) <= MAX_POINTS:
            raise PromptError(f"points must be (K,2) with K in 1..{MAX_POINTS}, not {points.shape}")
        labels = floats(self.labels, "labels")
        if labels.size != len(points) or not np.isin(labels, (0, 1)).all():
            each = f"for each of the {len(points)} points"
            raise PromptError(f"labels must be one 1 (object) or 0 (background) {each}, not {listed(labels)}")
        _check_unit(points, self.normalized, "points")
        object.__setattr__(self, "points", tuple(map(tuple, points.tolist())))
        object.__setattr__(self, "labels", tuple(map(int, labels.flat)))

    @property
    def label(self) -> str:
        n = len(np.asarray(self.points))
        return f"{n} click" + ("s" if n > 1 else "")

    def scaled(self, height: int, width: int) -> np.ndarray:
        """Return the points in source pixels, float32 (K,2). Raises PromptError for a point outside the image."""
        return _scaled(self.points, self.normalized, height, width, "point")


@dataclass(frozen=True, slots=True)
class Box:
    """A box around one object: `xyxy` = left, top, right, bottom in source pixels (0..1 if `normalized`); (1,4) and two
    corners (2,2) are accepted."""

    xyxy: npt.ArrayLike
    normalized: bool = False

    def __post_init__(self) -> None:
        box = floats(self.xyxy, "box")
        if box.size != 4:
            raise PromptError(f"a box is 4 numbers (left, top, right, bottom), not {box.shape}")
        box = box.reshape(4)
        if not (box[0] < box[2] and box[1] < box[3]):
            order = "left must be less than right, and top less than bottom"
            raise PromptError(f"box {box.tolist()}: {order}; give left, top, right, bottom, not a width and height")
        _check_unit(box, self.normalized, "box")
        object.__setattr__(self, "xyxy", tuple(box.tolist()))

    @property
    def label(self) -> str:
        return "box"

    def scaled(self, height: int, width: int) -> np.ndarray:
        """Return the box in source pixels, float32 (4,). Raises PromptError if it lies outside the image."""
        return _scaled(np.reshape(self.xyxy, (2, 2)), self.normalized, height, width, "box corner").reshape(4)


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A mask of one object at source size: `array` (H,W), (H,W,1) or (1,H,W).

    Inside the object are: of bools, true; of integers, all but 0, or with soft edges the upper half of 0..255 or
    0..65535; of floats in 0..1, probabilities above 0.5; of floats with negative values, logits above 0. Integers that
    number several objects are refused; the void label beside one object is left out with a warning.
    """

    array: np.ndarray

    def __post_init__(self) -> None:
        given = _mask_array(self.array)
        masks = masks_by_label(given)
        if len(masks) > 1:
            raise PromptError(
                f"the mask prompt numbers several objects, {listed(list(masks))}; give one mask for each, "
                f"like Mask(array == {next(iter(masks))})"
            )
        ((label, array),) = masks.items()
        if not array.any():
            raise PromptError("the mask prompt is empty: no pixel of it is inside the object")
        if label != NO_LABEL and (void := int(((given != 0) & ~array).sum())):
            warnings.warn(
                f"the mask prompt has {void} pixels of the void label {given.max():g} beside object {label}; they are "
                "left out",
                stacklevel=3,
            )
        object.__setattr__(self, "array", array.copy())  # the caller may use the buffer again

    @property
    def label(self) -> str:
        return "mask"

    def checked(self, height: int, width: int) -> np.ndarray:
        """Return the mask, bool (height,width). Raises PromptError if it was made for another size."""
        if self.array.shape != (height, width):
            turned = " (turned by 90 degrees)" if self.array.shape == (width, height) else ""
            raise PromptError(
                f"the mask prompt is {_size(self.array.shape)}, the video {_size((height, width))}{turned}; "
                "give a mask of the video's size, as it is shown"
            )
        return self.array


def _mask_array(values: Any) -> np.ndarray:
    check_unmasked(values, "a mask prompt")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(f"a mask prompt must be one (H,W) array ({summarize(error)})") from None
    while array.ndim > 2 and 1 in (array.shape[0], array.shape[-1]):
        array = array[..., 0] if array.shape[-1] == 1 else array[0]
    if array.ndim != 2 or array.dtype.kind not in "biuf" or 0 in array.shape:
        raise PromptError(f"a mask prompt must be a (H,W) array of numbers, not {array.dtype} {array.shape}")
    return array


def _check_unit(values: np.ndarray, normalized: bool, name: str) -> None:
    if normalized and not ((values >= 0) & (values <= 1)).all():
        raise PromptError(f"normalized {name} must lie in 0..1, not {listed(values)}")


def _scaled(values: npt.ArrayLike, normalized: bool, height: int, width: int, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # what no float32 holds becomes infinite, and lies outside every image
        points = np.array(values, np.float32)
    size = np.array([width, height], np.float32)
    points = points * size if normalized else points
    outside = ((points < 0) | (points > size)).any(axis=1)
    if outside.any():
        x, y = points[int(outside.argmax())].tolist()
        raise PromptError(f"{name} ({x:g}, {y:g}) lies outside the image, {_size((height, width))}")
    return points


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
