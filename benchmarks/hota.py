"""HOTA of tracked objects (Luiten et al., HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking, 2021).

Written from TrackEval's `hota.py`. For a threshold a on the IoU, TP are the pairs of true and tracked objects on one
frame that are matched with IoU >= a, one to one, by the assignment that maximises IoU times the overlap of the two
objects over the whole clip. With TPA, FNA and FPA, the frames that the two objects of a pair c share, and those of the
one or the other alone:

    DetA = TP / (TP + FN + FP)    AssA = mean over TP of TPA(c) / (TPA(c) + FNA(c) + FPA(c))    HOTA = sqrt(DetA AssA)

each averaged over a = 0.05, 0.10 .. 0.95. Over several clips the counts are added, AssA is weighted by TP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.imaging.masks import mask_iou

THRESHOLDS = np.arange(0.05, 0.99, 0.05)

Frame = tuple[Sequence[int], np.ndarray]
"""Ids of the objects on a frame, and their masks (K,H,W) bool."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums of one or more clips, each (thresholds,): matched pairs, missed and false objects, and the sum of the
    association score over the matched pairs."""

    matched: np.ndarray
    missed: np.ndarray
    false: np.ndarray
    association: np.ndarray

    @classmethod
    def total(cls, counts: Iterable[Counts]) -> Counts:
        """Add the counts of clips."""
        columns = zip(*((c.matched, c.missed, c.false, c.association) for c in counts), strict=True)
        return cls(*(np.sum(column, axis=0) for column in columns))

    @property
    def scores(self) -> dict[str, float]:
        """HOTA, DetA and AssA, averaged over the thresholds."""
        detection = self.matched / np.maximum(1, self.matched + self.missed + self.false)
        association = self.association / np.maximum(1, self.matched)
        means = (np.sqrt(detection * association), detection, association)
        return {name: float(x.mean()) for name, x in zip(("HOTA", "DetA", "AssA"), means, strict=True)}


def count(truth: Sequence[Frame], tracked: Sequence[Frame]) -> Counts:
    """Compare the tracked objects of one clip with the true ones, frame by frame."""
    from scipy.optimize import linear_sum_assignment

    (true_index, true_frames), (index, frames) = _numbered(truth), _numbered(tracked)
    overlaps = [mask_iou(a[1], b[1]) for a, b in zip(truth, tracked, strict=True)]
    shared = np.zeros((len(true_frames), len(frames)))
    for rows, columns, iou in zip(true_index, index, overlaps, strict=True):
        union = iou.sum(0)[None] + iou.sum(1)[:, None] - iou
        shared[np.ix_(rows, columns)] += iou / np.maximum(union, np.finfo(float).eps)
    alignment = shared / np.maximum(true_frames[:, None] + frames - shared, np.finfo(float).eps)
    zeros = np.zeros(len(THRESHOLDS))
    matched, missed, false = zeros.copy(), zeros.copy(), zeros.copy()
    pairs = np.zeros((len(THRESHOLDS), *shared.shape))
    for rows, columns, iou in zip(true_index, index, overlaps, strict=True):
        i, j = linear_sum_assignment(-alignment[np.ix_(rows, columns)] * iou)
        for a, threshold in enumerate(THRESHOLDS):
            good = iou[i, j] >= threshold - np.finfo(float).eps
            np.add.at(pairs[a], (rows[i[good]], columns[j[good]]), 1)
            matched[a] += good.sum()
            missed[a] += len(rows) - good.sum()
            false[a] += len(columns) - good.sum()
    association = pairs / np.maximum(1, true_frames[:, None] + frames - pairs)
    return Counts(matched, missed, false, (pairs * association).sum((1, 2)))


def _numbered(clip: Sequence[Frame]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the rows of the objects of each frame, counted from 0 over the clip, and the frames of each object."""
    ids = sorted({obj for objects, _ in clip for obj in objects})
    rows = {obj: row for row, obj in enumerate(ids)}
    index = [np.array([rows[obj] for obj in objects], np.int64) for objects, _ in clip]
    return index, np.bincount(np.concatenate([*index, np.zeros(0, np.int64)]), minlength=len(ids)).astype(float)
