"""Antialiased resize of masks, as PyTorch's `interpolate(mode="bilinear", antialias=True)` does it on a CPU.

Bit for bit: SAM 3 cuts resized masks at one half and uses the sign of resized logits of +-1024. Straight edges give
many pixels whose terms cancel; only the rounding of each sum says on which side such a pixel lies.
"""

from __future__ import annotations

import functools

import numpy as np

UNROLLED = 4
"""Products that PyTorch's compiled loop makes at a time; those that are left over are rounded once, with their sum."""


def resize_antialiased(planes_nhw: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize planes (N,H,W) to `size` (h, w), float32: columns first, then rows."""
    resized = planes_nhw.astype(np.float32, copy=False)
    for axis, target in ((2, size[1]), (1, size[0])):
        if resized.shape[axis] != target:
            resized = np.moveaxis(_resize_last(np.moveaxis(resized, axis, 2), target), 2, axis)
    return resized


def _resize_last(planes: np.ndarray, target: int) -> np.ndarray:
    source = planes.shape[2]
    first, weights, fused = _filter(source, target)
    total: np.ndarray = planes[..., first] * weights[:, 0]
    for tap in range(1, weights.shape[1]):
        taken, weight = planes[..., np.minimum(first + tap, source - 1)], weights[:, tap]
        separate = total + taken * weight
        once = fused[:, tap]
        if once.any():
            exact = total[..., once].astype(np.float64) + taken[..., once].astype(np.float64) * weight[once]
            separate[..., once] = exact.astype(np.float32)
        total = separate
    return total


@functools.lru_cache(maxsize=16)
def _filter(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first sample of each target sample (target,), its weights (target,taps) float32, and which products
    are rounded together with their sum (target,taps). All is rounded to float32 where PyTorch rounds it."""
    scale = np.float32(source) / np.float32(target)
    support, inverse = (scale, 1 / np.float64(scale)) if scale >= 1 else (np.float32(1), np.float64(1))
    centre = (np.float64(scale) * (np.arange(target) + 0.5)).astype(np.float32)
    first = np.maximum(((centre - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    last = np.minimum(((centre + support).astype(np.float64) + 0.5).astype(np.int64), source)
    count = (last - first)[:, None]
    tap = np.arange(count.max())
    away = ((tap + first[:, None]).astype(np.float32) - centre[:, None]).astype(np.float64) + 0.5
    distance = np.abs((away * np.float32(inverse)).astype(np.float32)).astype(np.float64)
    weights = np.maximum(1 - distance, 0).astype(np.float32)
    weights[tap >= count] = 0
    total = np.zeros((target, 1), np.float32)
    for n in range(len(tap)):
        total += weights[:, n : n + 1]
    return first, weights / total, tap >= 1 + (count - 1) // UNROLLED * UNROLLED
