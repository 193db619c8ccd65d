"""Boxes, areas and non-maximum suppression of masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def suppress(boxes_n4: np.ndarray, scores_n: np.ndarray, overlap: float) -> np.ndarray:
    """Return the indices that non-maximum suppression keeps, best first.

    No two of them overlap by more than `overlap` (IoU).
    """
    order = np.argsort(-scores_n, kind="stable")
    boxes = np.asarray(boxes_n4, np.float32)[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    alive = np.ones(len(boxes), bool)
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        rest = boxes[i + 1 :]
        size = np.minimum(rest[:, 2:], boxes[i, 2:]) - np.maximum(rest[:, :2], boxes[i, :2])
        shared = np.maximum(size, 0).prod(1)
        # two boxes without area share nothing; written as a product it needs no division by zero
        alive[i + 1 :] &= ~(shared > overlap * (areas[i + 1 :] + areas[i] - shared))
    return order[alive]


def mask_iou(a_nhw: np.ndarray, b_mhw: np.ndarray) -> np.ndarray:
    """Return the IoU (N,M) float32 of each bool mask of one set with each of another; 0 where both are empty."""
    a, b = (x.reshape(len(x), math.prod(x.shape[1:])).astype(np.float32) for x in (a_nhw, b_mhw))
    common = a @ b.T  # exact: counts below 2**24
    union = a.sum(1)[:, None] + b.sum(1) - common
    iou: np.ndarray = (common / np.maximum(union, 1)).astype(np.float32)
    return iou


def boxes_and_areas(masks_nhw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) int32 as x0, y0, x1, y1 and areas (N) int64, in pixels, of masks (N, H, W) bool.

    x1 and y1 are one past the last pixel, so that x1 - x0 is a width; an empty mask has the box 0, 0, 0, 0.
    """
    boxes = np.zeros((len(masks_nhw), 4), np.int32)
    areas = np.zeros(len(masks_nhw), np.int64)
    for n, mask in enumerate(masks_nhw):
        areas[n] = np.count_nonzero(mask)
        if areas[n]:
            rows = np.flatnonzero(mask.any(axis=1))
            top, bottom = int(rows[0]), int(rows[-1]) + 1
            columns = np.flatnonzero(mask[top:bottom].any(axis=0))
            boxes[n] = columns[0], top, columns[-1] + 1, bottom
    return boxes, areas


def probability(score: np.ndarray | Sequence[float]) -> np.ndarray:
    """Return the sigmoid of presence logits, float32."""
    return (1.0 / (1.0 + np.exp(-np.clip(np.asarray(score, np.float64), -500, 500)))).astype(np.float32)


def surroundings(mask_hw: np.ndarray, block: int) -> tuple[slice, slice]:
    """Return rows and columns, in whole blocks, outside which a bilinear enlargement of logits has no pixel that is on.

    `mask_hw`: where logits are on. Inside, the enlargement of the part is that of the whole.
    """
    sides = []
    for axis in (1, 0):
        found = np.flatnonzero(mask_hw.any(axis))
        first, last = (int(found[0]), int(found[-1])) if len(found) else (0, 0)
        # one cell beside the last one that is on is interpolated with it, and another one keeps the edge away
        sides.append(slice(max(0, first - 2) // block * block, -(-(last + 3) // block) * block))
    return sides[0], sides[1]
