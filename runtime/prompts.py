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

from .errors import PromptError

MAX_CHARACTERS = 10_000
"""A text longer than this is refused before it is tokenized: no network takes it, and tokenizing it takes seconds."""

MAX_POINTS = 256
"""Points of one prompt."""


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
    the object, 0 beside it."""

    points: npt.ArrayLike
    labels: npt.ArrayLike
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
        n = len(np.asarray(self.points))
        return f"{n} click" + ("s" if n > 1 else "")

    def scaled(self, height: int, width: int) -> np.ndarray:
        """Return the points in source pixels, float32 (K,2). Raises PromptError for a point outside the image."""
        return _scaled(self.points, self.normalized, height, width, "point")


@dataclass(frozen=True, slots=True)
class Box:
    """A box around one object: `xyxy` = left, top, right, bottom in source pixels (0..1 if `normalized`)."""

    xyxy: npt.ArrayLike
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
        """Return the box in source pixels, float32 (4,). Raises PromptError if it lies outside the image."""
        return _scaled(np.reshape(self.xyxy, (2, 2)), self.normalized, height, width, "box corner").reshape(4)


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
        """Return the mask, bool (height,width). Raises PromptError if it was made for another size."""
        if self.array.shape != (height, width):
            raise PromptError(
                f"the mask prompt is {_size(self.array.shape)}, the video {_size((height, width))}; "
                "give a mask of the video's size"
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
