"""Run lengths of masks in COCO's form."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import PromptError


def encode_rle(masks_nhw: np.ndarray) -> list[dict[str, Any]]:
    """Return bool masks (N,H,W) as `{"size": [H, W], "counts": str}`."""
    from pycocotools import mask as coco

    codes = coco.encode(np.asfortranarray(masks_nhw.transpose(1, 2, 0), np.uint8)) if len(masks_nhw) else []
    return [{"size": list(code["size"]), "counts": code["counts"].decode("ascii")} for code in codes]


def decode_rle(value: Any, max_pixels: int) -> np.ndarray:
    """Return a mask, bool (H,W), of run lengths that may come from anywhere.

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
