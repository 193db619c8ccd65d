"""Stages of nano's concept detector up to its levels, and the neck of its tracker; see `models.nano_concepts`."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.common import Group, Pointwise, double
from ..layers.fold import compose
from ..layers.hiera import Hiera
from ..layers.packing import Levels, from_cells, pack
from .hiera import folded_blocks
from .neck import Neck


class PackedImageStage(nn.Module):
    """pixels (T,3,I,I) -> trunk (T,N,W), level (T,N,D): the packed map and the detector's coarse level."""

    def __init__(self, trunk: Hiera, neck: Neck, levels: Levels, image_size: int) -> None:
        super().__init__()
        self.patches, self.levels = trunk.patch_embed.proj, levels
        self.stages = nn.ModuleList(folded_blocks(trunk, stage) for stage in range(4))
        self.neck = Group(lateral_16=neck.lateral(2), lateral_32=neck.lateral(3))
        self.register_buffer("positions", trunk.positions(image_size // 4).detach().clone())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x, maps = self.patches(pixels).permute(0, 2, 3, 1) + self.positions, []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        embedding = self.neck.lateral_16(maps[2]) + double(self.neck.lateral_32(maps[3]))
        trunk = pack(*maps[:3], embedding.flatten(1, 2))
        return trunk, self.levels.coarse(trunk)


class PackedFineLevelsStage(nn.Module):
    """trunk (T,N,W) -> level_2 (T,D,2s,2s), level_4 (T,D,4s,4s), s*s = N."""

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        level_2, level_4 = self.levels.fine(trunk)
        return level_2.contiguous(), level_4.contiguous()


class PackedTrackerNeckStage(nn.Module):
    """trunk (T,N,W) -> embedding, embedding_no_memory (T,N,D), high_res_0 (T,D/8,4s,4s), high_res_1 (T,D/4,2s,2s)."""

    def __init__(self, neck: Neck, levels: Levels, conv_s0: Pointwise, conv_s1: Pointwise, no_memory: Tensor) -> None:
        super().__init__()
        self.side, self.parts = levels.side, levels.parts
        self.fine_0, self.fine_1 = compose(neck.lateral(0), conv_s0), compose(neck.lateral(1), conv_s1)
        self.register_buffer("no_memory", no_memory.detach().reshape(-1).clone())

    def forward(self, trunk: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, embedding, middle, fine = trunk.split(self.parts, 2)
        high_res_0, high_res_1 = (
            layer(from_cells(x, n, self.side)).permute(0, 3, 1, 2).contiguous()
            for layer, x, n in ((self.fine_0, fine, 4), (self.fine_1, middle, 2))
        )
        return embedding, embedding + self.no_memory, high_res_0, high_res_1
