"""Necks of SAM 3: levels of strides 14, 7 and 3.5 from the one map of its trunk, for the detector and the tracker.

The levels are computed by three stages, so that a frame pays for those that it needs: `image_encoder` with the
detector's coarse level, `fine_levels` when a mask is computed, `tracker_neck` when an object is tracked or clicked.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.common import Pointwise
from ..layers.fold import compose_convolution, compose_transposed
from ..layers.rotary_vit import RotaryVit


class FineLevel(nn.Module):
    """Two transposed convolutions, GELU between them: four times the side of the map."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.dconv_2x2_0, self.dconv_2x2_1 = (nn.ConvTranspose2d(width // n, width // (2 * n), 2, 2) for n in (1, 2))
        self.conv_1x1, self.conv_3x3 = nn.Conv2d(width // 4, out, 1), nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x_bwhw: Tensor) -> Tensor:
        return self.conv_3x3(self.conv_1x1(self.dconv_2x2_1(F.gelu(self.dconv_2x2_0(x_bwhw)))))


class MiddleLevel(nn.Module):
    """One transposed convolution: twice the side of the map."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.dconv_2x2 = nn.ConvTranspose2d(width, width // 2, 2, 2)
        self.conv_1x1, self.conv_3x3 = nn.Conv2d(width // 2, out, 1), nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x_bwhw: Tensor) -> Tensor:
        return self.conv_3x3(self.conv_1x1(self.dconv_2x2(x_bwhw)))


class CoarseLevel(nn.Module):
    """The side of the map."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv_1x1, self.conv_3x3 = nn.Conv2d(width, out, 1), nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x_bwhw: Tensor) -> Tensor:
        return self.conv_3x3(self.conv_1x1(x_bwhw))


def neck(width: int, out: int) -> nn.ModuleList:
    """Return the levels of a neck, finest first; its checkpoint holds a fourth one that no computation uses."""
    return nn.ModuleList((FineLevel(width, out), MiddleLevel(width, out), CoarseLevel(width, out)))


def fine_level(level: FineLevel, head: Pointwise | None = None) -> nn.Sequential:
    """Return the finest level for export, with its linear layers merged, `head` among them."""
    last = level.conv_3x3 if head is None else compose_convolution(level.conv_3x3, head)
    return nn.Sequential(level.dconv_2x2_0, nn.GELU(), compose_transposed(level.dconv_2x2_1, level.conv_1x1), last)


def middle_level(level: MiddleLevel, head: Pointwise | None = None) -> nn.Sequential:
    """Return the middle level for export, with its linear layers merged, `head` among them."""
    last = level.conv_3x3 if head is None else compose_convolution(level.conv_3x3, head)
    return nn.Sequential(compose_transposed(level.dconv_2x2, level.conv_1x1), last)


class ConceptImageStage(nn.Module):
    """pixels (T,3,I,I) -> trunk (T,N,W), level (T,N,D): the trunk's map and the detector's coarse level."""

    def __init__(self, trunk: RotaryVit, coarse: CoarseLevel) -> None:
        super().__init__()
        self.trunk, self.coarse = trunk, coarse
        self.register_buffer("positions", trunk.positions().detach().clone())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk.run(self.trunk.embed(pixels, self.positions))
        level = self.coarse(x.permute(0, 3, 1, 2))
        return x.flatten(1, 2), level.flatten(2).transpose(1, 2)


class FineLevelsStage(nn.Module):
    """trunk (T,N,W) -> level_2 (T,D,2s,2s), level_4 (T,D,4s,4s), s*s = N."""

    def __init__(self, levels: nn.ModuleList, side: int) -> None:
        super().__init__()
        self.side = side
        self.level_4, self.level_2 = fine_level(levels[0]), middle_level(levels[1])

    def forward(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        x = trunk.transpose(1, 2).unflatten(2, (self.side, self.side))
        return self.level_2(x), self.level_4(x)


class TrackerNeckStage(nn.Module):
    """trunk (T,N,W) -> embedding, embedding_no_memory (T,N,D), high_res_0 (T,D/8,4s,4s), high_res_1 (T,D/4,2s,2s)."""

    def __init__(
        self, levels: nn.ModuleList, side: int, conv_s0: Pointwise, conv_s1: Pointwise, no_memory: Tensor
    ) -> None:
        super().__init__()
        self.side, self.coarse = side, levels[2]
        self.high_res_0, self.high_res_1 = fine_level(levels[0], conv_s0), middle_level(levels[1], conv_s1)
        self.register_buffer("no_memory", no_memory.detach().reshape(-1).clone())

    def forward(self, trunk: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = trunk.transpose(1, 2).unflatten(2, (self.side, self.side))
        embedding = self.coarse(x).flatten(2).transpose(1, 2)
        return embedding, embedding + self.no_memory, self.high_res_0(x), self.high_res_1(x)
