"""ROI align: average features of boxes, on a grid of cells (He et al., Mask R-CNN, 2017)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def roi_align(maps_bchw: Tensor, boxes_bk4: Tensor, side: int) -> Tensor:
    """Average the features of boxes x0, y0, x1, y1 in cells of the map, as (B*K,C,side,side).

    Coordinates are not shifted by half a cell, sides are at least 1, ceil(size / side) points per bin and axis are
    sampled, and points outside [-1, size] count as 0: torchvision's `roi_align` with its defaults. A traced graph has
    ONNX's RoiAlign, which computes the same.
    """
    batch, count = boxes_bk4.shape[:2]
    boxes = boxes_bk4.flatten(0, 1)
    index = torch.arange(batch, device=boxes.device)[:, None].expand(batch, count).flatten()
    if torch.compiler.is_exporting():
        return torch.onnx.ops.symbolic(
            "RoiAlign",
            (maps_bchw, boxes, index),
            {
                "mode": "avg",
                "output_height": side,
                "output_width": side,
                "sampling_ratio": 0,
                "spatial_scale": 1.0,
                "coordinate_transformation_mode": "output_half_pixel",
            },
            dtype=maps_bchw.dtype,
            shape=(boxes.shape[0], maps_bchw.shape[1], side, side),
            version=16,
        )
    pooled = [_pool(maps_bchw[int(i)], box, side) for i, box in zip(index, boxes, strict=True)]
    return torch.stack(pooled) if pooled else maps_bchw.new_zeros(0, maps_bchw.shape[1], side, side)


def _pool(map_chw: Tensor, box_4: Tensor, side: int) -> Tensor:
    rows = _weights(box_4[1], box_4[3], side, map_chw.shape[1])
    columns = _weights(box_4[0], box_4[2], side, map_chw.shape[2])
    return rows @ map_chw @ columns.T


def _weights(low: Tensor, high: Tensor, side: int, size: int) -> Tensor:
    """Return the weight of each cell of one axis in each bin: (side,size)."""
    length = (high - low).clamp(min=1.0)
    points = math.ceil(float(length) / side)
    steps = (torch.arange(side * points, device=low.device) + 0.5) / points
    at = low + steps * (length / side)
    inside = (at >= -1.0) & (at <= size)
    at = at.clamp(0, size - 1)
    first = at.floor().clamp(max=max(size - 2, 0)).long()
    fraction = at - first
    weights = at.new_zeros(len(at), size)
    rows = torch.arange(len(at), device=low.device)
    weights[rows, first] += torch.where(inside, 1 - fraction, 0.0)
    weights[rows, (first + 1).clamp(max=size - 1)] += torch.where(inside, fraction, 0.0)
    return weights.unflatten(0, (side, points)).mean(1)
