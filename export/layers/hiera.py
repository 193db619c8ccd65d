"""Hiera image trunk of SAM 2: windowed attention, pooled queries, channel-last maps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .common import MLP, Group

STRIDES = (4, 8, 16, 32)
"""Image pixels per position of each stage's map."""


@dataclass(frozen=True, slots=True)
class HieraConfig:
    """Sizes of a trunk.

    `windows` are tokens per side, even in every stage but the last, because the first block of a stage halves the
    window of the stage before; blocks numbered in `global_blocks` have no window.
    """

    width: int = 96
    heads: int = 1
    blocks: tuple[int, ...] = (1, 2, 7, 2)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    positions: int = 7
    """Side of the coarse position map, which is resized to the map of patches."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage's output, finest first."""
        return tuple(self.width << i for i in range(len(self.blocks)))


PUBLISHED_TRUNKS = {
    "tiny": HieraConfig(96, 1, (1, 2, 7, 2), (8, 4, 14, 7), (5, 7, 9), 7),
    "small": HieraConfig(96, 1, (1, 2, 11, 2), (8, 4, 14, 7), (7, 10, 13), 7),
    "base_plus": HieraConfig(112, 2, (2, 3, 16, 3), (8, 4, 14, 7), (12, 16, 20), 14),
    "large": HieraConfig(144, 2, (2, 6, 36, 4), (8, 4, 16, 8), (23, 33, 43), 7),
}
"""Trunks of the published SAM 2 checkpoints, by name."""


def pool(x_bhwc: Tensor) -> Tensor:
    """Max-pool 2x2."""
    return F.max_pool2d(x_bhwc.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def to_windows(x_bhwc: Tensor, side: int) -> Tensor:
    """Zero-pad to whole windows and partition: (B,H,W,C) -> (B*windows, side, side, C)."""
    b, h, w, c = x_bhwc.shape
    x_bhwc = F.pad(x_bhwc, (0, 0, 0, -w % side, 0, -h % side)) if h % side or w % side else x_bhwc
    rows, columns = -(-h // side), -(-w // side)
    x = x_bhwc.reshape(b, rows, side, columns, side, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(b * rows * columns, side, side, c)


def from_windows(x: Tensor, height: int, width: int) -> Tensor:
    """Put windows back on the map and drop the padding: (B*windows, side, side, C) -> (B,height,width,C)."""
    side, c = x.shape[1], x.shape[3]
    rows, columns = -(-height // side), -(-width // side)
    x = x.reshape(-1, rows, columns, side, side, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, rows * side, columns * side, c)[:, :height, :width]


def attend_map(q_bhwc: Tensor, k_bhwc: Tensor, v_bhwc: Tensor, heads: int) -> Tensor:
    """Attend over whole maps; the result has the size of the query map."""
    h, w = q_bhwc.shape[1:3]
    # only global blocks of large images have large score matrices, and their query axis is static
    num_query_chunks = 4 if h * w % 4 == 0 and h * w >= 2048 else 1
    x = attend(q_bhwc.flatten(1, 2), k_bhwc.flatten(1, 2), v_bhwc.flatten(1, 2), heads, split=(1, num_query_chunks))
    return x.unflatten(1, (h, w))


class HieraAttention(nn.Module):
    def __init__(self, width: int, out: int, heads: int, pool: bool) -> None:
        super().__init__()
        self.heads, self.pool = heads, pool
        self.qkv = nn.Linear(width, 3 * out)
        self.proj = nn.Linear(out, out)

    def forward(self, x_bhwc: Tensor) -> Tensor:
        q, k, v = self.qkv(x_bhwc).chunk(3, -1)
        return self.proj(attend_map(pool(q) if self.pool else q, k, v, self.heads))


class HieraBlock(nn.Module):
    """Pre-norm block. A block that widens pools its queries and shortcut and has the window of the previous stage."""

    def __init__(self, width: int, out: int, heads: int, window: int) -> None:
        super().__init__()
        self.window, self.pool = window, width != out
        self.norm1 = nn.LayerNorm(width, 1e-6)
        self.attn = HieraAttention(width, out, heads, self.pool)
        self.norm2 = nn.LayerNorm(out, 1e-6)
        self.mlp = MLP(out, 4 * out, out, 2, gelu=True)
        if self.pool:
            self.proj = nn.Linear(width, out)

    def forward(self, x_bhwc: Tensor) -> Tensor:
        normed = self.norm1(x_bhwc)
        shortcut = pool(self.proj(normed)) if self.pool else x_bhwc
        if self.window:
            x = self.attn(to_windows(normed, self.window))
            x = from_windows(x, shortcut.shape[1], shortcut.shape[2])
        else:
            x = self.attn(normed)
        x = shortcut + x
        return x + self.mlp(self.norm2(x))


class Hiera(nn.Module):
    """Image trunk: `start` embeds the patches, `run` applies the blocks of one stage."""

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.patch_embed = Group(proj=nn.Conv2d(3, width, 7, 4, 3))
        self.pos_embed = nn.Parameter(torch.zeros(1, width, config.positions, config.positions))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, width, config.windows[0], config.windows[0]))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_window, std=0.02)
        self.blocks = nn.ModuleList()
        for stage, count in enumerate(config.blocks):
            for i in range(count):
                first = stage > 0 and i == 0
                window = 0 if len(self.blocks) in config.global_blocks else config.windows[stage - first]
                out, heads = (2 * width, 2 * heads) if first else (width, heads)
                self.blocks.append(HieraBlock(width, out, heads, window))
                width = out

    def positions(self, side: int) -> Tensor:
        """Return the position map (side,side,C): the coarse map, resized (bicubic), plus the tiled window map."""
        coarse = F.interpolate(self.pos_embed, size=(side, side), mode="bicubic")
        times = side // self.pos_embed_window.shape[-1]
        return (coarse + self.pos_embed_window.tile(1, 1, times, times))[0].permute(1, 2, 0)

    def start(self, pixels_bchw: Tensor, positions_hwc: Tensor | None = None) -> Tensor:
        """Embed pixels (B,3,I,I) as patches with positions (B,I/4,I/4,C)."""
        x = self.patch_embed.proj(pixels_bchw).permute(0, 2, 3, 1)
        return x + (self.positions(x.shape[1]) if positions_hwc is None else positions_hwc)

    def stage_blocks(self, stage: int) -> nn.ModuleList:
        """Return the blocks of one stage."""
        first = sum(self.config.blocks[:stage])
        return self.blocks[first : first + self.config.blocks[stage]]

    def run(self, stage: int, x_bhwc: Tensor) -> Tensor:
        """Apply one stage; every stage but the first halves the side and doubles the channels."""
        for block in self.stage_blocks(stage):
            x_bhwc = block(x_bhwc)
        return x_bhwc
