"""Prompts: a sentence (`Text`), or points, a box or a mask of one object.

Plain values that check themselves when they are made, so that a mistake is reported where it was made. Checks that
need the size of the video are in `scaled` and `checked`, those that need the bundle in `tokenizer.encode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PromptError, summarize

MAX_CHARACTERS = 10_000
"""A text longer than this is refused before it is tokenized: no network takes it, and tokenizing it takes seconds."""

MAX_POINTS = 256
"""Points of one prompt."""

NO_LABEL = 0
"""Label of a mask that is one object, without a number of its own."""


@dataclass(frozen=True, slots=True)
class Text:
    """A referring expression, as `text` or as the `tokens` of the bundle's vocabulary (with `<s>` and `</s>`).

    `verbs` names the verbs for bundles with a motion prompt: indices into the token sequence, counted with the special
    tokens; or, beside `text`, words of the sentence. Raises PromptError unless exactly one of text and tokens is given.
    """

    text: str | None = None
    tokens: Sequence[int] | None = field(default=None, kw_only=True)
    verbs: Sequence[int | str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if (self.text is None) == (self.tokens is None):
            raise PromptError("Text takes either a text or tokens=[...], exactly one of them")
        if self.text is not None:
            _check_text(self.text)
        else:
            tokens = integers(self.tokens, "tokens")
            if not tokens:
                raise PromptError("Text(tokens=[]) is empty; give at least one token id")
            object.__setattr__(self, "tokens", tokens)
        if self.verbs is not None:
            object.__setattr__(self, "verbs", _verbs(self.verbs, has_text=self.text is not None))

    @property
    def label(self) -> str:
        """Text to show beside the mask."""
        if self.text is not None:
            return " ".join(self.text.split())
        tokens = list(self.tokens or ())
        return f"tokens {','.join(map(str, tokens[:8]))}" + (",..." if len(tokens) > 8 else "")


@dataclass(frozen=True, slots=True)
class Points:
    """Points on or beside one object: `points` (K,2) x, y in source pixels (0..1 if `normalized`); `labels` (K,) 1 on
    the object, 0 beside it, as any type of number. One point may be (2,) with a single label."""

    points: npt.ArrayLike
    labels: npt.ArrayLike
    normalized: bool = False

    def __post_init__(self) -> None:
        points = _floats(self.points, "points")
        if points.shape == (2,) or (points.ndim == 3 and len(points) == 1):
            points = points.reshape(-1, points.shape[-1])
        if points.ndim != 2 or points.shape[1] != 2 or not 1 <= len(points) <= MAX_POINTS:
            raise PromptError(f"points must be (K,2) with K in 1..{MAX_POINTS}, not {points.shape}")
        labels = _floats(self.labels, "labels")
        if labels.size != len(points) or not np.isin(labels, (0, 1)).all():
            each = f"for each of the {len(points)} points"
            raise PromptError(f"labels must be one 1 (object) or 0 (background) {each}, not {_listed(labels)}")
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
        box = _floats(self.xyxy, "box")
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
    number several objects are refused.
    """

    array: np.ndarray

    def __post_init__(self) -> None:
        masks = masks_by_label(_mask_array(self.array))
        if len(masks) > 1:
            raise PromptError(
                f"the mask prompt numbers several objects, {_listed(list(masks))}; give one mask for each, "
                f"like Mask(array == {next(iter(masks))})"
            )
        (array,) = masks.values()
        if not array.any():
            raise PromptError("the mask prompt is empty: no pixel of it is inside the object")
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


def check_texts(prompts: Any) -> None:
    """Raise PromptError unless `prompts` is a list of at least one Text."""
    if (
        isinstance(prompts, (str, Text))
        or (not isinstance(prompts, Sequence) and not isinstance(prompts, np.ndarray))
        or not all(isinstance(p, Text) for p in prompts)
    ):
        raise PromptError("prompts must be a list of runtime.Text, e.g. [runtime.Text('the horse on the left')]")
    if not len(prompts):
        raise PromptError("no prompt: give at least one runtime.Text")


def integers(values: Any, name: str) -> tuple[int, ...]:
    """Return a flat list of integers as a tuple. Raises PromptError that calls it `name`."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise PromptError(f"{name} must be a flat list of integers") from None
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise PromptError(f"{name} must be a flat list of integers")
    return tuple(int(v) for v in array)


def masks_by_label(values_hw: np.ndarray) -> dict[int, np.ndarray]:
    """Split a mask of any kind of numbers into a bool mask per object, by label; `NO_LABEL` if it is one object.

    The highest value of 8 or 16 bits beside low labels is DAVIS's void label and left out. Raises PromptError for
    values without a clear meaning.
    """
    if values_hw.dtype.kind == "b":
        return {NO_LABEL: values_hw}
    low, high = values_hw.min(), values_hw.max()
    if not np.isfinite([low, high]).all():
        raise PromptError(f"the mask prompt has values that are not finite: {low:g} to {high:g}")
    if values_hw.dtype.kind == "f" and (low < 0 or high <= 1 or (values_hw % 1).any()):
        return {NO_LABEL: values_hw > _float_threshold(float(low), float(high))}
    if low < 0 or high > 0xFFFF:
        raise PromptError(f"the mask prompt has integers from {low:g} to {high:g}; give 0 outside, 1 inside the object")
    top = 0xFF if high <= 0xFF else 0xFFFF
    found = np.unique(values_hw[values_hw > 0]).astype(int)
    labels = found[found < top]
    if len(found) < 2 and not any(1 < label <= top // 2 for label in labels):
        return {NO_LABEL: values_hw > 0}
    if _has_soft_edges(values_hw, labels, top):
        return {NO_LABEL: values_hw > top // 2}
    return {int(label): values_hw == label for label in labels}


def _float_threshold(low: float, high: float) -> float:
    """Return the threshold of a mask of floats. Raises PromptError unless they are probabilities or logits."""
    margin = 1e-3  # of interpolation
    if -margin <= low and high <= 1 + margin:
        if 0 < high <= 0.5:
            raise PromptError(f"the mask prompt is empty: its probabilities are {high:g} at most, none above 0.5")
        return 0.5
    if low >= 0 or (low > -0.25 and high < 1.25):
        raise PromptError(
            f"the mask prompt has values of {low:g} to {high:g}: neither probabilities, 0 to 1, nor logits, below and "
            "above 0; give bools, like array > threshold"
        )
    return 0.0


def _has_soft_edges(values_hw: np.ndarray, labels: np.ndarray, top: int) -> bool:
    """Tell the grey levels of one object with soft edges from numbers of objects, which fill areas.

    Raises PromptError for areas of high values, which may be either.
    """
    is_grey, num_top = (values_hw > 0) & (values_hw < top), (values_hw == top).sum()
    are_low = labels.max() <= top // (4 if num_top else 2)
    if are_low and num_top <= is_grey.sum():
        return False
    padded = np.pad(values_hw.astype(np.int32), 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    contrast = windows.max(axis=(2, 3)) - windows.min(axis=(2, 3))
    if are_low:
        return not (is_grey & (contrast == 0)).any()
    middle = contrast[(values_hw > top // 8) & (values_hw < top - top // 8)]
    if (middle == 0).any() and (middle > top // 32).sum() > ((middle > 0) & (middle <= top // 32)).sum():
        areas = f"the mask prompt has areas of the grey values {_listed(labels)}"
        raise PromptError(f"{areas}; number the objects 1, 2, 3, or give one object of 0 and {top}")
    return True


def _mask_array(values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PromptError(f"a mask prompt must be one (H,W) array ({summarize(error)})") from None
    while array.ndim > 2 and 1 in (array.shape[0], array.shape[-1]):
        array = array[..., 0] if array.shape[-1] == 1 else array[0]
    if array.ndim != 2 or array.dtype.kind not in "biuf" or 0 in array.shape:
        raise PromptError(f"a mask prompt must be a (H,W) array of numbers, not {array.dtype} {array.shape}")
    return array


def _floats(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
        array = array.astype(np.float64, casting="unsafe" if array.dtype.kind != "c" else "safe")
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise PromptError(f"{name} must be numbers ({summarize(error)})") from None
    if not np.isfinite(array).all():
        raise PromptError(f"{name} must be finite numbers, not {_listed(array)}")
    return array


def _listed(values: npt.ArrayLike) -> str:
    return summarize(str(np.asarray(values).tolist()), 80)


def _check_unit(values: np.ndarray, normalized: bool, name: str) -> None:
    if normalized and not ((values >= 0) & (values <= 1)).all():
        raise PromptError(f"normalized {name} must lie in 0..1, not {_listed(values)}")


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


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise PromptError(f"a text prompt must be a str, not {type(text).__name__}")
    if not text:
        raise PromptError('the text prompt is empty; describe the object, like "the horse jumping"')
    if not text.strip() or not any(c.isprintable() and not c.isspace() for c in text):
        raise PromptError('the text prompt is blank; describe the object, like "the horse jumping"')
    if len(text) > MAX_CHARACTERS:
        raise PromptError(f"the text prompt has {len(text)} characters, more than {MAX_CHARACTERS}; shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PromptError("the text prompt is not text (bytes that are no UTF-8); retype it") from None
    control = next((c for c in text if ord(c) < 32 and not c.isspace()), None)
    if control is not None:
        raise PromptError(f"the text prompt is not text (control character {ord(control):#04x} in it); retype it")


def _verbs(verbs: Any, has_text: bool) -> tuple[int | str, ...]:
    if isinstance(verbs, str) or not isinstance(verbs, (Iterable, np.ndarray)):
        raise PromptError("verbs must be a list of token positions or words")
    verbs = tuple(verbs)
    words = tuple(v for v in verbs if isinstance(v, str))
    if len(words) == len(verbs):
        if words and not has_text:
            raise PromptError("verbs of a prompt given as tokens must be token positions, not words")
        return words
    return integers(verbs, "verbs")
