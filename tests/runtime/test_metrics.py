"""J and F against a direct computation from their definitions."""

import math

import numpy as np
import pytest

from runtime.metrics import boundary_f, contour, dilate, jaccard


def blob(rng, height=48, width=64):
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(3, 15)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < r * r
    return mask


def slow_contour(mask):
    height, width = mask.shape
    out = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            others = [mask[min(y + dy, height - 1), min(x + dx, width - 1)] for dy, dx in ((0, 1), (1, 0), (1, 1))]
            out[y, x] = any(o != mask[y, x] for o in others)
    return out


def slow_f(pred, gt, radius):
    a, b = np.argwhere(slow_contour(pred)), np.argwhere(slow_contour(gt))
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    near = ((a[:, None] - b[None]) ** 2).sum(-1) <= radius * radius
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def inner(mask):
    """Clear the last rows and columns, where clamping and omitting a neighbour differ."""
    mask = mask.copy()
    mask[-2:] = mask[:, -2:] = False
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_f_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    gt = inner(blob(rng))
    pred = inner(np.roll(gt, rng.integers(-3, 4, 2), (0, 1)) if seed % 2 else blob(rng))
    assert (contour(gt) == slow_contour(gt)).all()
    assert boundary_f(pred, gt) == pytest.approx(slow_f(pred, gt, math.ceil(0.008 * math.hypot(48, 64))), abs=1e-12)
    assert boundary_f(pred, gt, bound=4) == pytest.approx(slow_f(pred, gt, 4), abs=1e-12)


def test_j_is_intersection_over_union():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[1:3] = True, True
    assert jaccard(a, b) == pytest.approx(4 / 12)
    assert jaccard(np.stack([a, a]), np.stack([a, b])).tolist() == pytest.approx([1, 4 / 12])


def test_empty_masks():
    empty, full = np.zeros((8, 8), bool), np.eye(8, dtype=bool)
    assert jaccard(empty, empty) == boundary_f(empty, empty) == 1
    assert jaccard(full, empty) == boundary_f(full, empty) == boundary_f(empty, full) == 0


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 40])
def test_dilation_by_a_disk(radius):
    mask = np.zeros((21, 17), bool)
    mask[3, 4] = mask[20, 16] = True
    y, x = np.mgrid[:21, :17]
    disk = ((y - 3) ** 2 + (x - 4) ** 2 <= radius**2) | ((y - 20) ** 2 + (x - 16) ** 2 <= radius**2)
    assert (dilate(mask, radius) == disk).all()


def test_shapes_must_match():
    with pytest.raises(ValueError, match="of one shape"):
        jaccard(np.zeros((4, 4)), np.zeros((4, 5)))
