"""Multi-scale deformable attention (Zhu et al., Deformable DETR, 2021) on maps of fixed size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def cell_centres(side: int) -> Tensor:
    """Return the centres of a square map's cells in the unit square, x before y: (side*side,2)."""
    steps = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack((x, y), -1).flatten(0, 1)


def sample(
    value_bnhd: Tensor, grids: list[Tensor], weights: list[Tensor], shapes: tuple[tuple[int, int], ...]
) -> Tensor:
    """Return a weighted sum of bilinear samples, zero outside the maps.

    value (B,N,h,d), maps of `shapes` one after another; for each map a grid (B,h,Q,P,2) in -1..1 (x before y, -1
    and 1 are the outer edges) and weights (B,h,Q,P). Returns (B,Q,h*d).
    """
    total = None
    # along the last axis: CUDA's split of three unequal parts uploads no table of pointers there
    levels = value_bnhd.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], 2)
    for value, shape, grid, weight in zip(levels, shapes, grids, weights, strict=True):
        maps = value.unflatten(2, shape)
        samples = F.grid_sample(maps, grid.flatten(0, 1), mode="bilinear", padding_mode="zeros", align_corners=False)
        part = (samples * weight.flatten(0, 1)[:, None]).sum(-1)
        total = part if total is None else total + part
    heads, _width = value_bnhd.shape[2:]
    return total.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)


class Deformable(nn.Module):
    """Deformable attention: every query samples `points` locations near its reference on every level."""

    def __init__(self, width: int, heads: int, levels: int, points: int, value_width: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, value_width)
        self.output_proj = nn.Linear(value_width, width)

    def forward(self, query_bqd: Tensor, value_bnd: Tensor, references_q2: Tensor, sides: tuple[int, ...]) -> Tensor:
        """Attend from queries (B,Q,D) with references (Q,2) in the unit square to maps (B,N,D) with these sides.

        Offsets count cells of the sampled map. They are divided, not multiplied: a division stays in float32 in a half
        precision graph, and rounding a location to half costs more accuracy than all the rest.
        """
        h, levels, points = self.heads, self.levels, self.points
        offsets = self.sampling_offsets(query_bqd).unflatten(2, (h, levels, points, 2)).permute(3, 0, 2, 1, 4, 5)
        weights = self.attention_weights(query_bqd).unflatten(2, (h, levels * points)).softmax(-1)
        weights = weights.unflatten(3, (levels, points)).permute(3, 0, 2, 1, 4)
        centre = (2 * references_q2 - 1)[:, None]
        grids = [offsets[level] / (side / 2) + centre for level, side in enumerate(sides)]
        value = self.value_proj(value_bnd).unflatten(2, (h, -1))
        return self.output_proj(sample(value, grids, list(weights.unbind(0)), tuple((s, s) for s in sides)))
