"""Image encoder of SAM 2: Hiera trunk, feature pyramid and the decoder's fine maps."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.common import Pointwise
from ..layers.hiera import Hiera
from .hiera import FirstHiera, NextHiera
from .neck import Neck, NeckStage


class ImageEncoderStage(nn.Module):
    """pixels (T,3,I,I) -> embedding, embedding_no_memory (T,N,D), high_res_0 (T,D/8,S4,S4), high_res_1."""

    def __init__(
        self, trunk: Hiera, neck: Neck, conv_s0: Pointwise, conv_s1: Pointwise, no_memory: Tensor, image_size: int
    ) -> None:
        super().__init__()
        self.first = FirstHiera(trunk, neck.lateral(0), conv_s0, image_size)
        self.stage_2, self.stage_3 = NextHiera(trunk, 2), NextHiera(trunk, 3)
        self.neck = NeckStage(neck, conv_s1, no_memory)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        vision_8, high_res_0 = self.first(pixels)
        (vision_16,) = self.stage_2(vision_8)
        (vision_32,) = self.stage_3(vision_16)
        embedding, embedding_no_memory, high_res_1 = self.neck(vision_8, vision_16, vision_32)
        return embedding, embedding_no_memory, high_res_0, high_res_1
