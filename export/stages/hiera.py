"""Trunk stages between two fusions.

`hiera_0` covers the first two trunk stages, because no sentence enters before stride 8; it is shared by all prompts. The
stride-4 fine map of the decoder is a linear image of trunk stage 0 alone, so it leaves here: the lateral convolution of
the neck and the decoder's `conv_s0` become one matrix.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.common import Pointwise
from ..layers.fold import compose
from ..layers.hiera import Hiera


class FirstHiera(nn.Module):
    """pixels (T,3,I,I) -> vision_0 (T,S8,S8,C1), high_res_0 (T,D/8,S4,S4)."""

    def __init__(self, trunk: Hiera, lateral: Pointwise, conv_s0: Pointwise, image_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.fine = compose(lateral, conv_s0)
        self.register_buffer("positions", trunk.positions(image_size // 4).detach().clone())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk.run(0, self.trunk.start(pixels, self.positions))
        return self.trunk.run(1, x), self.fine(x).permute(0, 3, 1, 2).contiguous()


class NextHiera(nn.Module):
    """vision (T,h,w,C) -> (T,h/2,w/2,2C): one trunk stage."""

    def __init__(self, trunk: Hiera, stage: int) -> None:
        super().__init__()
        self.blocks = trunk.stage_blocks(stage)

    def forward(self, vision: Tensor) -> tuple[Tensor]:
        for block in self.blocks:
            vision = block(vision)
        return (vision,)
