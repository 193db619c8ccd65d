"""Maps of several strides packed into one, and the levels of a detector on it.

SAM 3's trunk has maps of one stride, nano's, a Hiera, of four. A cell of the packed map has the channels of all cells
of the finer maps inside it, so that the stages are those of SAM 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hiera import HieraConfig


@dataclass(frozen=True, slots=True)
class PackedTrunkConfig:
    """Sizes of the packed map: those of the trunk's maps of strides 4 to 16, and `embedding`, the tracker's map."""

    image_size: int
    patch: int
    hiera: HieraConfig
    embedding: int

    @property
    def side(self) -> int:
        return self.image_size // self.patch

    @property
    def parts(self) -> tuple[int, ...]:
        """Channels of strides 16, 16 (`embedding`), 8 and 4 in a cell."""
        fine, middle, coarse, _ = self.hiera.widths
        return coarse, self.embedding, 4 * middle, 16 * fine

    @property
    def width(self) -> int:
        return sum(self.parts)


def pack(fine_bhwc: Tensor, middle_bhwc: Tensor, coarse_bhwc: Tensor, embedding_bnd: Tensor) -> Tensor:
    """Pack maps of strides 4, 8 and 16 and the tracker's map into one (B,N,W)."""
    cells = [_to_cells(x, n) for x, n in ((middle_bhwc, 2), (fine_bhwc, 4))]
    return torch.cat((coarse_bhwc.flatten(1, 2), embedding_bnd, *cells), 2)


def _to_cells(x_bhwc: Tensor, n: int) -> Tensor:
    """Put n x n neighbours into one cell: (B,n*s,n*s,C) -> (B,s*s,n*n*C)."""
    b, h, w, c = x_bhwc.shape
    return x_bhwc.reshape(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h * w // n**2, n * n * c)


def from_cells(x_bnc: Tensor, n: int, side: int) -> Tensor:
    """Undo the packing of one map: (B,s*s,n*n*C) -> (B,n*s,n*s,C)."""
    channels = x_bnc.shape[2] // n**2
    x = x_bnc.reshape(-1, side, side, n, n, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, n * side, n * side, channels)


class Levels(nn.Module):
    """The detector's levels of strides 16, 8 and 4 from the packed map."""

    def __init__(self, config: PackedTrunkConfig, width: int) -> None:
        super().__init__()
        self.side, self.parts = config.side, config.parts
        coarse = sum(self.parts[:3])
        middle, fine = self.parts[2] // 4, self.parts[3] // 16
        self.norms = nn.ModuleList(nn.LayerNorm(n) for n in (coarse, middle, fine))
        self.projections = nn.ModuleList(nn.Linear(n, width) for n in (coarse, middle, fine))
        self.mix = nn.Conv2d(width, width, 3, padding=1)

    def coarse(self, trunk_bnw: Tensor) -> Tensor:
        """Return the level (B,N,D) that encoder and decoder work on."""
        x = self.projections[0](self.norms[0](trunk_bnw[..., : sum(self.parts[:3])]))
        mixed = self.mix(F.gelu(x).transpose(1, 2).unflatten(2, (self.side, self.side)))
        return x + mixed.flatten(2).transpose(1, 2)

    def fine(self, trunk_bnw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the levels (B,D,2s,2s) and (B,D,4s,4s) of the mask head."""
        _, _, middle, fine = trunk_bnw.split(self.parts, 2)
        maps = from_cells(middle, 2, self.side), from_cells(fine, 4, self.side)
        level_2, level_4 = (
            self.projections[i](self.norms[i](x)).permute(0, 3, 1, 2) for i, x in zip((1, 2), maps, strict=True)
        )
        return level_2, level_4
