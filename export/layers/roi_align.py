"""ROI align: average features of boxes, on a grid of cells (He et al., Mask R-CNN, 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = 4
"""Side of a box, as a multiple of the map's, up to which all points are sampled; of larger boxes, the first ones."""


def roi_align(maps_bhwc: Tensor, boxes_bk4: Tensor, side: int) -> Tensor:
    """Average the features of boxes x0, y0, x1, y1 in cells of the map, as (B,K,C,side,side).

    Coordinates are not shifted by half a cell, sides are at least 1, ceil(size / side) points per bin and axis are
    sampled, and points outside [-1, size] count as 0: torchvision's `roi_align` with its defaults. The points form a
    grid, so that the average is one product for the rows and one for the columns; ONNX's RoiAlign, which computes the
    same, is unknown to TensorRT-RTX.
    """
    x0, y0, x1, y1 = boxes_bk4.unbind(-1)
    _, height, width, _ = maps_bhwc.shape
    rows, columns = _weights(y0, y1, side, height), _weights(x0, x1, side, width)
    pooled = (rows.flatten(1, 2) @ maps_bhwc.flatten(2)).unflatten(1, rows.shape[1:3]).unflatten(3, (width, -1))
    # all rows of a box in one product: a broadcast operand uploads a table of pointers on CUDA
    return (columns @ pooled.transpose(2, 3).flatten(3)).unflatten(3, (side, -1)).permute(0, 1, 4, 3, 2)


def _weights(low_bk: Tensor, high_bk: Tensor, side: int, size: int) -> Tensor:
    """Return the weight of each cell of one axis in each bin: (B,K,side,size)."""
    bins = torch.arange(side, dtype=torch.float32, device=low_bk.device)
    points = torch.arange(math.ceil(LARGEST * size / side), dtype=torch.float32, device=low_bk.device)
    cells = torch.arange(size, dtype=torch.float32, device=low_bk.device)
    step = (high_bk - low_bk).clamp(min=1.0) / side
    sampled = points < step[..., None]  # as points < ceil(step)
    count = sampled.float().sum(-1, keepdim=True)
    offset = bins[:, None] + ((points + 0.5) / count)[:, :, None]
    at = low_bk[..., None, None] + offset * step[..., None, None]
    inside = (at >= -1.0) & (at <= size) & sampled[:, :, None]
    near = 1.0 - (at.clamp(0, size - 1)[..., None] - cells).abs()
    weights = torch.where(inside[..., None], near.clamp(min=0), 0.0).sum(3)
    return weights / count[..., None]
