"""Feature pyramid, and the fine maps of the mask decoder."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.common import Group, Pointwise, double
from ..layers.fold import compose


class Neck(nn.Module):
    """1x1 convolutions, coarsest first. Stride 32 is added to stride 16 and then dropped."""

    def __init__(self, widths: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Group(conv=Pointwise(w, out)) for w in reversed(widths))

    def lateral(self, level: int) -> Pointwise:
        """Return the convolution of a level, counted from the finest."""
        return self.convs[len(self.convs) - 1 - level].conv

    def embedding(self, vision_16_bhwc: Tensor, vision_32_bhwc: Tensor) -> Tensor:
        """Return the stride-16 map (B,h,w,D)."""
        return self.lateral(2)(vision_16_bhwc) + double(self.lateral(3)(vision_32_bhwc))


class NeckStage(nn.Module):
    """Maps of strides 8, 16, 32 (T,h,w,C) -> embedding, embedding_no_memory (T,N,D), high_res_1 (T,D/4,S8,S8)."""

    def __init__(self, neck: Neck, conv_s1: Pointwise, no_memory: Tensor) -> None:
        super().__init__()
        self.neck = Group(lateral_16=neck.lateral(2), lateral_32=neck.lateral(3))
        self.fine = compose(neck.lateral(1), conv_s1)
        self.register_buffer("no_memory", no_memory.detach().reshape(-1).clone())

    def forward(self, vision_8: Tensor, vision_16: Tensor, vision_32: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.neck.lateral_16(vision_16) + double(self.neck.lateral_32(vision_32))
        x = x.flatten(1, 2)
        return x, x + self.no_memory, self.fine(vision_8).permute(0, 3, 1, 2).contiguous()
