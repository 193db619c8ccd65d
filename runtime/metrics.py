"""Region similarity J and contour accuracy F of video segmentation, as defined by DAVIS (Perazzi et al., CVPR 2016).

J is intersection over union. F is the harmonic mean of contour precision and recall, where a contour pixel is a match
if the other contour passes within 0.8 % of the image diagonal. Also the error between two tensors. Needs numpy only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

BOUND = 0.008
"""Tolerance of F as a fraction of the image diagonal; in pixels it is rounded up."""

RMS_FLOOR = 1e-3
"""Tensors with a smaller root mean square are compared by their absolute error."""


class TensorError(NamedTuple):
    """Difference of two tensors: relative L2 error, largest absolute error, cosine of the angle between them."""

    relative: float
    largest: float
    cosine: float


def tensor_error(got: np.ndarray, want: np.ndarray) -> TensorError:
    """Compare in float64; for bool and integers the relative error is the share of entries that differ.

    The error is infinite if `got` is not finite.
    """
    if want.dtype.kind in "biu":
        differs = float(np.mean(got != want)) if want.size else 0.0
        return TensorError(differs, float(differs > 0), 1.0 - differs)
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    if not np.isfinite(a).all():
        return TensorError(math.inf, math.inf, 0.0)
    norm_a, norm_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    relative = float(np.linalg.norm(a - b)) / max(norm_b, RMS_FLOOR * max(len(b), 1) ** 0.5)
    cosine = float(a @ b) / (norm_b * norm_a) if norm_a and norm_b else float(norm_a == norm_b)
    return TensorError(relative, float(np.abs(a - b).max(initial=0.0)), cosine)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Return `tensor_error(got, want).relative`."""
    return tensor_error(got, want).relative


def jaccard(pred: np.ndarray, gt: np.ndarray) -> np.ndarray | float:
    """Compute J of bool masks (..., H, W): a float for one pair, else an array of the leading shape.

    J of two empty masks is 1.
    """
    pred, gt = _check_pair(pred, gt)
    union = (pred | gt).sum(axis=(-2, -1))
    score = np.where(union == 0, 1.0, (pred & gt).sum(axis=(-2, -1)) / np.maximum(union, 1))
    return float(score) if score.ndim == 0 else score


def clip_jaccard(pred: np.ndarray, gt: np.ndarray) -> float:
    """Compute J of one object over all frames of a clip at once, bool masks (T, H, W). J of two empty clips is 1."""
    return float(jaccard(pred.reshape(1, -1), gt.reshape(1, -1)))


def boundary_f(pred: np.ndarray, gt: np.ndarray, bound: float = BOUND) -> np.ndarray | float:
    """Compute F of bool masks (..., H, W): a float for one pair, else an array of the leading shape.

    `bound` is the tolerance, a fraction of the diagonal if below 1, else pixels. F of two empty masks is 1.
    """
    pred, gt = _check_pair(pred, gt)
    if pred.ndim == 2:
        return _boundary_f(pred, gt, bound)
    pairs = zip(pred.reshape(-1, *pred.shape[-2:]), gt.reshape(-1, *gt.shape[-2:]), strict=True)
    return np.array([_boundary_f(p, g, bound) for p, g in pairs]).reshape(pred.shape[:-2])


def contour(mask: np.ndarray) -> np.ndarray:
    """Return the contour of a bool mask (H, W), one pixel wide.

    A contour pixel differs from its right, lower or lower right neighbour. The rule is that of the Berkeley benchmark's
    `seg2bmap`: the contour lies half a pixel towards the origin.
    """
    mask = np.asarray(mask, bool)
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilate a bool mask (H, W) by the disk x^2 + y^2 <= radius^2.

    Rows of the disk are one row that grows from its top to its middle.
    """
    mask = np.asarray(mask, bool)
    height, width = mask.shape
    out = np.zeros_like(mask)
    reach, half = mask.copy(), 0
    for dy in range(radius, -1, -1):
        widest = min(math.isqrt(radius * radius - dy * dy), width - 1)
        for step in range(half + 1, widest + 1):
            reach[:, step:] |= mask[:, : width - step]
            reach[:, : width - step] |= mask[:, step:]
        half = widest
        if dy < height:
            out[dy:] |= reach[: height - dy]
            out[: height - dy] |= reach[dy:]
    return out


def _check_pair(pred: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pred, gt = np.asarray(pred), np.asarray(gt)
    if pred.shape != gt.shape or pred.ndim < 2:
        raise ValueError(f"masks must be (..., H, W) of one shape, not {pred.shape} and {gt.shape}")
    return pred != 0, gt != 0


def _boundary_f(pred: np.ndarray, gt: np.ndarray, bound: float) -> float:
    radius = int(bound if bound >= 1 else math.ceil(bound * math.hypot(*pred.shape)))
    pred, gt = contour(pred), contour(gt)
    count_pred, count_gt = int(pred.sum()), int(gt.sum())
    if count_pred == 0 or count_gt == 0:
        return float(count_pred == count_gt)
    window = _bounding_window(pred | gt)
    pred, gt = pred[window], gt[window]
    precision = (pred & dilate(gt, radius)).sum() / count_pred
    recall = (gt & dilate(pred, radius)).sum() / count_gt
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def _bounding_window(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the bounding box of a mask: only distances between pixels inside it matter."""
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
