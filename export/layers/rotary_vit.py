"""Image trunk of SAM 3 (Perception Encoder): a plain ViT with windows, axial RoPE and a tiled position table.

Parameters are named as in the official checkpoints (`detector.backbone.vision_backbone.trunk.`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .common import Group
from .fold import linear
from .hiera import from_windows, to_windows
from .positions import pairs_to_halves, rotate_halves, rotate_pairs, rotation_tables


@dataclass(frozen=True, slots=True)
class RotaryVitConfig:
    """Sizes of the trunk. Blocks numbered in `global_blocks` attend to the whole map, the others to windows.

    `window` is a divisor of the map's side and the side of the position table; a head is `head_width` wide.
    """

    image_size: int = 1008
    patch: int = 14
    width: int = 1024
    hidden: int = 4736
    blocks: int = 32
    global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    window: int = 24
    head_width: int = 64

    @property
    def side(self) -> int:
        """Side of the map of patches."""
        return self.image_size // self.patch

    @property
    def heads(self) -> int:
        return self.width // self.head_width


def trunk_rotation(config: RotaryVitConfig, window: bool) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (n*n,1,head_width/2) of windows, or of the map compressed to a window's range."""
    side = config.window if window else config.side
    cos, sin = rotation_tables(side, config.head_width, config.window / side)
    return cos[:, None], sin[:, None]


class RotaryAttention(nn.Module):
    """Self-attention with rotated queries and keys; the rotation tables are constants."""

    def __init__(self, config: RotaryVitConfig, window: bool) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        cos, sin = trunk_rotation(config, window)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x_bnw: Tensor) -> Tensor:
        q, k, v = self.qkv(x_bnw).chunk(3, -1)
        q, k = (rotate_pairs(x.unflatten(2, (self.heads, -1)), self.cos, self.sin).flatten(2) for x in (q, k))
        return self.proj(attend(q, k, v, self.heads))


class RotaryBlock(nn.Module):
    """Pre-norm block on tokens (B,N,W) of windows, or of whole maps."""

    def __init__(self, config: RotaryVitConfig, window: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attn = RotaryAttention(config, window)
        self.mlp = Group(fc1=nn.Linear(config.width, config.hidden), fc2=nn.Linear(config.hidden, config.width))

    def forward(self, x_bnw: Tensor) -> Tensor:
        x_bnw = x_bnw + self.attn(self.norm1(x_bnw))
        return x_bnw + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x_bnw))))


class RotaryVit(nn.Module):
    """Trainable module. The first row of `pos_embed` belongs to a class token that the trunk does not have."""

    def __init__(self, config: RotaryVitConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + config.window**2, width))
        self.patch_embed = Group(proj=nn.Conv2d(3, width, config.patch, config.patch, bias=False))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            RotaryBlock(config, window=i not in config.global_blocks) for i in range(config.blocks)
        )

    def positions(self) -> Tensor:
        """Return the position table, tiled over the map: (side,side,W)."""
        window = self.config.window
        times = self.config.side // window
        return self.pos_embed[0, 1:].unflatten(0, (window, window)).tile(times, times, 1)

    def embed(self, pixels_b3ii: Tensor, positions_hww: Tensor) -> Tensor:
        """Embed pixels (B,3,I,I) as the input (B,side,side,W) of the first block."""
        return self.ln_pre(self.patch_embed.proj(pixels_b3ii).permute(0, 2, 3, 1) + positions_hww)

    def run(self, x_bhww: Tensor) -> Tensor:
        """Apply all blocks to a map. Consecutive windowed blocks share one partition into windows."""
        side, window = self.config.side, self.config.window
        in_windows = False
        x = x_bhww
        for number, block in enumerate(self.blocks):
            windowed = number not in self.config.global_blocks
            if windowed != in_windows:
                x = to_windows(x, window) if windowed else from_windows(x, side, side)
                in_windows = windowed
            x = block(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
        return from_windows(x, side, side) if in_windows else x

    def forward(self, pixels_b3ii: Tensor) -> Tensor:
        """Encode pixels (B,3,I,I) as a map (B,side,side,W)."""
        return self.run(self.embed(pixels_b3ii, self.positions()))


class FoldedRotaryAttention(nn.Module):
    """`RotaryAttention` for export: the channels of q and k are ordered so that no rotation interleaves."""

    def __init__(self, attention: RotaryAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        width = attention.proj.out_features
        head = pairs_to_halves(width // self.heads)
        order = (torch.arange(self.heads)[:, None] * len(head) + head).flatten()
        order = torch.cat((order, width + order, torch.arange(2 * width, 3 * width)))
        self.qkv, self.proj = linear(attention.qkv.weight[order], attention.qkv.bias[order]), attention.proj
        self.register_buffer("cos", attention.cos)
        self.register_buffer("sin", attention.sin)

    def forward(self, x_bnw: Tensor) -> Tensor:
        q, k, v = self.qkv(x_bnw).chunk(3, -1)
        q, k = (rotate_halves(x.unflatten(2, (self.heads, -1)), self.cos, self.sin).flatten(2) for x in (q, k))
        return self.proj(attend(q, k, v, self.heads, split=(1, 4 if x_bnw.shape[1] % 4 == 0 else 1)))


def fold_rotations(trunk: RotaryVit) -> None:
    """Replace every attention of the trunk, in place, by one that rotates without interleaving."""
    for block in trunk.blocks:
        block.attn = FoldedRotaryAttention(block.attn)
