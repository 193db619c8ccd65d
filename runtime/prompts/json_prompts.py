"""Prompts that come as JSON, from anywhere: sentences, concepts, points, boxes and masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import PromptError, reject_unknown, summarize
from .concept import Concept
from .text import Text
from .visual import Box, Mask, Points

MAX_MASKS = 4
"""Masks of the largest size that one frame may have: a few characters of run lengths are millions of pixels."""


def parse_prompts(values: Any, max_count: int) -> list[Text] | list[Concept] | None:
    """Return sentences or concepts; None for an empty list. Raises PromptError."""
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise PromptError('prompts must be a list like [{"text": "the red car"}] or [{"concept": "bus"}]')
    if len(values) > max_count:
        raise PromptError(f"{len(values)} prompts, more than {max_count}; send fewer")
    concepts = [value for value in values if "concept" in value or "boxes" in value]
    if not concepts:
        return [_text(value) for value in values] or None
    if len(concepts) < len(values):
        raise PromptError("prompts must be all sentences or all concepts")
    return [parse_concept(value) for value in values]


def _text(value: Mapping[str, Any]) -> Text:
    reject_unknown("a sentence", value, ("text", "tokens", "verbs"))
    return Text(value.get("text"), tokens=value.get("tokens"), verbs=value.get("verbs"))


def parse_concept(value: Mapping[str, Any]) -> Concept:
    """Return a concept. Raises PromptError."""
    reject_unknown("a concept", value, ("concept", "tokens", "boxes", "labels"))
    words, boxes = value.get("concept"), value.get("boxes")
    return Concept(words, tokens=value.get("tokens"), boxes=boxes, labels=value.get("labels"))


def parse_objects(values: Any, max_count: int, max_pixels: int) -> dict[int, Any]:
    """Return points, boxes and masks by object; none for None. Raises PromptError.

    max_pixels  of one mask; all of one frame may have `MAX_MASKS` times as many, because their run lengths are short
    """
    values = {} if values is None else values
    if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
        raise PromptError('prompts on a frame must be an object like {"1": {"points": [[x, y]], "labels": [1]}}')
    if len(values) > max_count:
        raise PromptError(f"{len(values)} objects, more than {max_count}; send fewer")
    found, pixels = dict[int, Any](), 0
    for key, value in values.items():
        visual = found[parse_number(key, "an object")] = _visual(value, max_pixels)
        pixels += visual.array.size if isinstance(visual, Mask) else 0
        if pixels > MAX_MASKS * max_pixels:
            raise PromptError(f"masks of more than {MAX_MASKS * max_pixels:,} pixels on one frame; send fewer")
    return found


def parse_number(value: Any, name: str) -> int:
    """Return a whole number. Raises PromptError."""
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,9}", str(value)):
        raise PromptError(f"{name} is a whole number, not {summarize(repr(value), 40)}")
    return int(value)


def _visual(value: Mapping[str, Any], max_pixels: int) -> Any:
    reject_unknown("a prompt", value, ("points", "labels", "box", "mask"))
    if "mask" in value:
        return Mask(decode_rle(value["mask"], max_pixels))
    found: list[Any] = [Box(value["box"])] if "box" in value else []
    if "points" in value:
        found.append(Points(value["points"], value.get("labels", [])))
    if not found:
        raise PromptError('a prompt has "points" and "labels", a "box", or a "mask"')
    return found if len(found) > 1 else found[0]


def decode_rle(value: Any, max_pixels: int) -> np.ndarray:
    """Return the mask, bool (H,W), of COCO run lengths.

    pycocotools' own decoder writes beyond the array where they are too long. Raises PromptError.
    """
    size, counts = (value.get("size"), value.get("counts")) if isinstance(value, dict) else (None, None)
    if not isinstance(size, list) or len(size) != 2 or not all(type(s) is int and 0 < s <= max_pixels for s in size):
        raise PromptError('a mask must be COCO run lengths like {"size": [height, width], "counts": "..."}')
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and 0 <= run <= max_pixels for run in runs):
        raise PromptError("counts of a mask must be COCO's string or a list of run lengths")
    if sum(runs) != size[0] * size[1] or sum(runs) > max_pixels:
        raise PromptError(f"the runs of a mask add up to {sum(runs)} pixels, its size is {size[1]}x{size[0]}")
    mask: np.ndarray = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[1], size[0]).T
    return mask


def _runs(counts: str) -> list[int]:
    """Decode COCO's string: 5 bits a character, the lowest first; from the fourth run on, differences."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise PromptError("counts of a mask are not COCO's string")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs
