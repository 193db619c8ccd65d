"""SAM's image encoder (Kirillov et al., 2023): a plain ViT with windows and decomposed relative positions.

The blocks take any grid; positions are interpolated from the tables of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .common import Group, LayerNorm2d


@dataclass(frozen=True, slots=True)
class VitConfig:
    """Sizes of the encoder. `windows` holds one number per block, 0 for global attention."""

    width: int = 768
    heads: int = 12
    windows: tuple[int, ...] = (14, 14, 0, 14, 14, 0, 14, 14, 0, 14, 14, 0)
    hidden: int = 3072
    positions: int = 64
    """Side of the position table; the tables of global blocks have 2 * positions - 1 rows."""
    patch: int = 16
    out: int = 256


def relative_table(table_rc: Tensor, side: int) -> Tensor:
    """Resize a relative position table (R,C) to 2*side-1 rows and expand it to all pairs of cells: (side,side,C)."""
    rows = 2 * side - 1
    if table_rc.shape[0] != rows:
        table_rc = F.interpolate(table_rc.T[None], size=rows, mode="linear", align_corners=False)[0].T
    steps = torch.arange(side, device=table_rc.device)
    return table_rc[steps[:, None] - steps + side - 1]


class VitAttention(nn.Module):
    """Self-attention with a bias q.R_y + q.R_x that depends on the distance of two cells in rows and in columns.

    The bias is a dot product, too: q is extended by its products with the two tables, k by the cell's row and column as
    unit vectors. Attention then needs no bias, so any fused kernel can compute it. The tables are times the root of
    the longer width, because `attend` divides by it.
    """

    def __init__(self, width: int, heads: int, rows: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(rows, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(rows, width // heads))
        for name in ("table_y", "table_x", "cells"):
            self.register_buffer(name, None, persistent=False)

    def tables(self, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tables of rows (h,C,h) and columns (w,C,w), C the width of a head, and unit vectors (h,w,1,h+w)."""
        root = (self.rel_pos_h.shape[1] + height + width) ** 0.5
        y, x = (root * relative_table(t, n).mT for t, n in ((self.rel_pos_h, height), (self.rel_pos_w, width)))
        rows, columns = (torch.eye(n, device=y.device) for n in (height, width))
        cells = torch.cat((rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)), -1)
        return y, x, cells[:, :, None]

    def freeze(self, side: int) -> None:
        """Store the tables for square grids of this side as constants."""
        self.table_y, self.table_x, self.cells = (t.detach().contiguous() for t in self.tables(side, side))

    def forward(self, x_bhwd: Tensor) -> Tensor:
        height, width = x_bhwd.shape[1:3]
        frozen = self.cells is not None
        table_y, table_x, cells = (self.table_y, self.table_x, self.cells) if frozen else self.tables(height, width)
        q, k, v = self.qkv(x_bhwd).chunk(3, -1)
        q, k = (x.unflatten(3, (self.heads, -1)) for x in (q, k))
        scale = ((q.shape[-1] + height + width) / q.shape[-1]) ** 0.5
        rows = _times(q, table_y)
        columns = _times(q.transpose(1, 2), table_x).transpose(1, 2)
        q = torch.cat((q * scale, rows, columns), -1)
        k = torch.cat((k, cells.expand(k.shape[0], -1, -1, self.heads, -1)), -1)
        mixed = attend(q.flatten(3).flatten(1, 2), k.flatten(3).flatten(1, 2), v.flatten(1, 2), self.heads)
        return self.proj(mixed).unflatten(1, (height, width))


def _times(x_bmnhc: Tensor, tables_mck: Tensor) -> Tensor:
    """Multiply every line of M with its table: (B,M,N,h,C) and (M,C,K) -> (B,M,N,h,K).

    A product without a broadcast operand, because on CUDA those upload a table of pointers. onnxscript's optimizer
    drops the two reshapes where B and M are equal numbers, which those of no published network are.
    """
    lines = x_bmnhc.flatten(2, 3) @ tables_mck.expand(x_bmnhc.shape[0], -1, -1, -1)
    return lines.unflatten(2, x_bmnhc.shape[2:4])


class VitBlock(nn.Module):
    """Pre-norm block. Windows are padded after the norm, so padding takes part as keys."""

    def __init__(self, config: VitConfig, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = nn.LayerNorm(config.width, 1e-6), nn.LayerNorm(config.width, 1e-6)
        self.attn = VitAttention(config.width, config.heads, 2 * (window or config.positions) - 1)
        self.mlp = Group(lin1=nn.Linear(config.width, config.hidden), lin2=nn.Linear(config.hidden, config.width))

    def forward(self, x_bhwd: Tensor) -> Tensor:
        x = self.norm1(x_bhwd)
        x = x_bhwd + (self._windowed(x) if self.window else self.attn(x))
        return x + self.mlp.lin2(F.gelu(self.mlp.lin1(self.norm2(x))))

    def _windowed(self, x_bhwd: Tensor) -> Tensor:
        (height, width), s = x_bhwd.shape[1:3], self.window
        down, right = -height % s, -width % s
        x = F.pad(x_bhwd, (0, 0, 0, right, 0, down)) if down or right else x_bhwd
        rows, columns = (height + down) // s, (width + right) // s
        x = x.unflatten(2, (columns, s)).unflatten(1, (rows, s)).transpose(2, 3).flatten(0, 2)
        x = self.attn(x).unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x[:, :height, :width] if down or right else x


class Vit(nn.Module):
    """Patch embedding, blocks and neck; the adapter runs them in parts."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_embed = nn.Parameter(torch.zeros(1, config.positions, config.positions, config.width))
        self.patch_embed = Group(proj=nn.Conv2d(3, config.width, config.patch, config.patch))
        self.blocks = nn.ModuleList(VitBlock(config, window) for window in config.windows)
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, config.out, 1, bias=False),
            LayerNorm2d(config.out),
            nn.Conv2d(config.out, config.out, 3, padding=1, bias=False),
            LayerNorm2d(config.out),
        )

    def positions(self, side: int) -> Tensor:
        """Resize the position table to (1,side,side,D): bilinear, as in ReferSAM (SAM resizes bicubic)."""
        table = self.pos_embed.permute(0, 3, 1, 2)
        return F.interpolate(table, size=(side, side), mode="bilinear", align_corners=False).permute(0, 2, 3, 1)

    def embed(self, pixels_b3ii: Tensor) -> Tensor:
        """Embed pixels (B,3,I,I) as patches (B,I/16,I/16,D), without positions."""
        return self.patch_embed.proj(pixels_b3ii).permute(0, 2, 3, 1)

    def run(self, first: int, last: int, x_bhwd: Tensor) -> Tensor:
        """Apply blocks first..last-1."""
        for block in self.blocks[first:last]:
            x_bhwd = block(x_bhwd)
        return x_bhwd

    def freeze(self, side: int) -> None:
        """Store relative positions for grids of this side as constants."""
        for block in self.blocks:
            block.attn.freeze(block.window or side)
