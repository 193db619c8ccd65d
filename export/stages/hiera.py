"""Trunk stages between two fusions.

`hiera_0` covers the first two trunk stages, because no sentence enters before stride 8; it is shared by all prompts. The
stride-4 fine map of the decoder is a linear image of trunk stage 0 alone, so it leaves here: the lateral convolution of
the neck and the decoder's `conv_s0` become one matrix.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.common import Pointwise
from ..layers.fold import compose, linear
from ..layers.hiera import Hiera, HieraBlock, attend_map, from_windows, pool, to_windows


class FoldedBlock(nn.Module):
    """`HieraBlock` for export: projects the map first and cuts windows afterwards, so that padding is never projected.

    Padding of the normed map has the biases as its query, key and value. Its query is thrown away; a bias shared by all
    keys shifts every score of a query alike, which softmax does not see; a bias shared by all values passes through,
    because a softmax row sums to 1, and moves behind the output projection. So keys and values need no bias and their
    padding is zero.
    """

    def __init__(self, block: HieraBlock) -> None:
        super().__init__()
        attn = block.attn
        (q, k, v), (q_bias, _, v_bias) = attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3)
        self.q, self.k, self.v = linear(q, q_bias), linear(k, None), linear(v, None)
        self.out = linear(attn.proj.weight, attn.proj.bias + attn.proj.weight @ v_bias)
        self.heads, self.window, self.pool = attn.heads, block.window, block.pool
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        if self.pool:
            self.proj = block.proj

    def forward(self, x_bhwc: Tensor) -> Tensor:
        normed = self.norm1(x_bhwc)
        shortcut = pool(self.proj(normed)) if self.pool else x_bhwc
        q, k, v = self.q(normed), self.k(normed), self.v(normed)
        q = pool(q) if self.pool else q
        if self.window:
            q = to_windows(q, self.window // 2 if self.pool else self.window)
            x = attend_map(q, to_windows(k, self.window), to_windows(v, self.window), self.heads)
            x = from_windows(x, shortcut.shape[1], shortcut.shape[2])
        else:
            x = attend_map(q, k, v, self.heads)
        x = shortcut + self.out(x)
        return x + self.mlp(self.norm2(x))


def folded(trunk: Hiera, stage: int) -> nn.Sequential:
    """The blocks of a stage, each folded."""
    return nn.Sequential(*(FoldedBlock(block) for block in trunk.stage_blocks(stage)))


class FirstHiera(nn.Module):
    """pixels (T,3,I,I) -> vision_0 (T,S8,S8,C1), high_res_0 (T,D/8,S4,S4)."""

    def __init__(self, trunk: Hiera, lateral: Pointwise, conv_s0: Pointwise, image_size: int) -> None:
        super().__init__()
        self.patches = trunk.patch_embed.proj
        self.stage_0, self.stage_1 = folded(trunk, 0), folded(trunk, 1)
        self.fine = compose(lateral, conv_s0)
        self.register_buffer("positions", trunk.positions(image_size // 4).detach().clone())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stage_0(self.patches(pixels).permute(0, 2, 3, 1) + self.positions)
        return self.stage_1(x), self.fine(x).permute(0, 3, 1, 2).contiguous()


class NextHiera(nn.Module):
    """vision (T,h,w,C) -> (T,h/2,w/2,2C): one trunk stage."""

    def __init__(self, trunk: Hiera, stage: int) -> None:
        super().__init__()
        self.blocks = folded(trunk, stage)

    def forward(self, vision: Tensor) -> tuple[Tensor]:
        return (self.blocks(vision),)
