"""Trunk stages between two cross-modal adapters.

`hiera_0` covers the first two trunk stages and is shared by all prompts, because text enters at stride 8. The decoder's
stride-4 map is a linear function of trunk stage 0, so `hiera_0` returns it: the lateral convolution of the neck and the
decoder's `conv_s0` become one matrix.
"""

from __future__ import annotations

from math import lcm

import torch
from torch import Tensor, nn

from ..layers.attention import targets_cpu
from ..layers.common import Pointwise
from ..layers.fold import FoldedAttention, compose
from ..layers.hiera import Hiera, HieraBlock, attend_map, from_windows, pool, to_windows


class FoldedBlock(nn.Module):
    """`HieraBlock` for export: projects the map before the partition into windows, so padding is not projected.

    Padding of the normed map has zero keys and values, thanks to `FoldedAttention`; its queries are discarded.
    """

    def __init__(self, block: HieraBlock) -> None:
        super().__init__()
        attn = block.attn
        self.attn = FoldedAttention(attn.qkv.weight, attn.qkv.bias, attn.proj, attn.heads)
        self.window, self.pool = block.window, block.pool
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        if self.pool:
            self.proj = block.proj

    def forward(self, x_bhwc: Tensor) -> Tensor:
        normed, attn = self.norm1(x_bhwc), self.attn
        shortcut = pool(self.proj(normed)) if self.pool else x_bhwc
        q, k, v = attn.q(normed), attn.k(normed), attn.v(normed)
        q = pool(q) if self.pool else q
        if self.window:
            q = to_windows(q, self.window // 2 if self.pool else self.window)
            x = attend_map(q, to_windows(k, self.window), to_windows(v, self.window), attn.heads)
            x = from_windows(x, shortcut.shape[1], shortcut.shape[2])
        else:
            x = attend_map(q, k, v, attn.heads)
        x = shortcut + attn.out(x)
        return x + self.mlp(self.norm2(x))


def folded_blocks(trunk: Hiera, stage: int) -> nn.Sequential:
    """Return the blocks of a stage, each folded."""
    return nn.Sequential(*(FoldedBlock(block) for block in trunk.stage_blocks(stage)))


TILE_PATCHES = 4096
"""Patches (96 to 144 channels) whose activations in the first two trunk stages stay in a CPU's cache."""


def row_tiles(trunk: Hiera, side: int) -> int:
    """Return the number of tiles of rows into which the first two trunk stages split a map of `side` x `side` patches.

    Windows are independent of each other, so tiles of whole windows in every block give a bit-equal result.
    """
    rows = [
        block.window * (1 if stage == 0 or block.pool else 2) for stage in (0, 1) for block in trunk.stage_blocks(stage)
    ]
    if 0 in rows:  # a block with global attention
        return 1
    return next(
        (n for n in range(side * side // TILE_PATCHES, 1, -1) if side % n == 0 and side // n % lcm(*rows) == 0), 1
    )


class FirstHiera(nn.Module):
    """pixels (T,3,I,I) -> vision_0 (T,S8,S8,C1), high_res_0 (T,D/8,S4,S4)."""

    def __init__(self, trunk: Hiera, lateral: Pointwise, conv_s0: Pointwise, image_size: int) -> None:
        super().__init__()
        self.patches = trunk.patch_embed.proj
        self.stage_0, self.stage_1 = folded_blocks(trunk, 0), folded_blocks(trunk, 1)
        self.fine = compose(lateral, conv_s0)
        self.register_buffer("positions", trunk.positions(image_size // 4).detach().clone())
        self.row_tiles = row_tiles(trunk, image_size // 4)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patches(pixels).permute(0, 2, 3, 1) + self.positions
        if self.row_tiles > 1 and targets_cpu():
            tiles = [self._stages(tile) for tile in x.chunk(self.row_tiles, 1)]
            vision, fine = (torch.cat(maps, 1) for maps in zip(*tiles, strict=True))
        else:
            vision, fine = self._stages(x)
        return vision, fine.permute(0, 3, 1, 2).contiguous()

    def _stages(self, x_bhwc: Tensor) -> tuple[Tensor, Tensor]:
        x_bhwc = self.stage_0(x_bhwc)
        return self.stage_1(x_bhwc), self.fine(x_bhwc)


class NextHiera(nn.Module):
    """vision (T,h,w,C) -> (T,h/2,w/2,2C): one trunk stage."""

    def __init__(self, trunk: Hiera, stage: int) -> None:
        super().__init__()
        self.blocks = folded_blocks(trunk, stage)

    def forward(self, vision: Tensor) -> tuple[Tensor]:
        return (self.blocks(vision),)
