"""Morphology of masks: connected components, hole filling, removal of small regions. Plain numpy, any mask size."""

from __future__ import annotations

import numpy as np

HOLE_LOGIT, SPECK_LOGIT = np.float32(0.1), np.float32(-0.1)
"""Logits of a filled hole (just foreground, as in SAM 2) and of a removed speck (SAM 3)."""


def components(mask_hw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the 8-connected regions of a bool mask.

    Returns labels (H,W) int32, 0 where the mask is false and 1, 2, ... elsewhere, and areas (regions + 1,) int64 by
    label, whose entry 0 counts the false pixels. Works on runs of pixels: a union over the few runs that touch.
    """
    height, width = mask_hw.shape
    padded = np.zeros((height, width + 1), np.int8)
    padded[:, :width] = mask_hw
    steps = np.diff(padded.ravel(), prepend=np.int8(0))
    # one column of padding ends every run inside its own row, so flat positions keep rows apart
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    roots = _merge(_touching(starts, ends, width + 1), len(starts))
    numbers = np.unique(roots, return_inverse=True)[1].astype(np.int32) + 1
    lengths = ends - starts
    areas = np.bincount(numbers, lengths, numbers.max(initial=0) + 1).astype(np.int64)
    areas[0] = height * width - areas.sum()
    flat = np.zeros(height * (width + 1), np.int32)
    flat[np.repeat(starts, lengths) + _count_up(lengths)] = np.repeat(numbers, lengths)
    return flat.reshape(height, width + 1)[:, :width], areas


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """Return 0..n-1 for every n in `lengths`, one after another."""
    count: np.ndarray = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return count


def _touching(starts: np.ndarray, ends: np.ndarray, pitch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of runs in neighbouring rows that touch, corners included. Positions are flat, `pitch` per row."""
    first = np.searchsorted(ends, starts - pitch, "left")  # ends at or after our start, one row up
    last = np.searchsorted(starts, ends - pitch, "right")  # starts at or before our end
    # runs further up than one row end before `starts - pitch`, those of our own row start after `ends - pitch`
    counts = np.maximum(last - first, 0)
    own = np.repeat(np.arange(len(starts)), counts)
    return own, np.repeat(first, counts) + _count_up(counts)


def _merge(pairs: tuple[np.ndarray, np.ndarray], count: int) -> np.ndarray:
    """Return the smallest member of each run's region: roots are hooked to smaller ones until no pair disagrees."""
    roots = np.arange(count)
    a, b = pairs
    while True:
        left, right = roots[a], roots[b]
        differ = left != right
        if not differ.any():
            return roots
        np.minimum.at(roots, np.maximum(left, right)[differ], np.minimum(left, right)[differ])
        while True:
            shorter = roots[roots]
            if np.array_equal(shorter, roots):
                break
            roots = shorter


def fill_holes(logits_hw: np.ndarray, area: int) -> np.ndarray:
    """Return logits in which background regions (logit <= 0) of at most `area` pixels are `HOLE_LOGIT`.

    The same array when there is nothing to fill or `area` is 0.
    """
    if area < 1:
        return logits_hw
    background = logits_hw <= 0
    if background.all() or not background.any():
        return logits_hw
    labels, areas = components(background)
    small = areas <= area
    small[0] = False
    return np.where(small[labels], HOLE_LOGIT, logits_hw) if small.any() else logits_hw


def remove_specks(logits_hw: np.ndarray, area: int) -> np.ndarray:
    """Return logits in which foreground regions of at most `area` pixels, and of at most half the foreground, are
    `SPECK_LOGIT`. The same array when there is nothing to remove."""
    foreground = logits_hw > 0
    limit = min(area, int(np.count_nonzero(foreground)) // 2)
    if limit < 1:
        return logits_hw
    labels, areas = components(foreground)
    small = areas <= limit
    small[0] = False
    return np.where(small[labels], SPECK_LOGIT, logits_hw) if small.any() else logits_hw


def without_small_regions(logits_hw: np.ndarray, area: int) -> np.ndarray:
    """Return logits without holes and islands of at most `area` pixels: they become +10 and -10."""
    if area < 1:
        return logits_hw
    out = logits_hw
    for regions, value in ((logits_hw <= 0, np.float32(10)), (logits_hw > 0, np.float32(-10))):
        labels, areas = components(regions)
        small = areas <= area
        small[0] = False
        out = np.where(small[labels], value, out)
    return out
