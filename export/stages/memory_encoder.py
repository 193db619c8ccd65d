"""Memory encoder: fuses a mask with the image embedding into one memory slot."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.common import Group, LayerNorm2d, Pointwise, upsample


class ConvNextBlock(nn.Module):
    """ConvNeXt block (SAM 2's CXBlock) on (B,D,h,w): depthwise 7x7, pointwise feed-forward, scale `gamma`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x_bdhw: Tensor) -> Tensor:
        x = self.norm(self.dwconv(x_bdhw).permute(0, 2, 3, 1))
        x = self.gamma * self.pwconv2(F.gelu(self.pwconv1(x)))
        return x_bdhw + x.permute(0, 3, 1, 2)


class MemoryEncoder(nn.Module):
    """Trainable module. `channels` are those of the four downsampling steps of the mask."""

    def __init__(self, width: int, memory_width: int, channels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((1, *channels)):
            layers += [nn.Conv2d(a, b, 3, 2, 1), LayerNorm2d(b), nn.GELU()]
        self.mask_downsampler = Group(encoder=nn.Sequential(*layers, nn.Conv2d(channels[-1], width, 1)))
        self.pix_feat_proj = Pointwise(width, width)
        self.fuser = Group(layers=nn.ModuleList(ConvNextBlock(width) for _ in range(blocks)))
        self.out_proj = Pointwise(width, memory_width)

    def forward(self, embedding_bnd: Tensor, mask_bhw: Tensor) -> Tensor:
        """Encode a map before memory attention (B,N,D) and a mask in 0..1 at image size (B,I,I) as a slot (B,N,M)."""
        x = self.mask_downsampler.encoder(20 * mask_bhw[:, None] - 10)
        pixels = self.pix_feat_proj(embedding_bnd).transpose(1, 2)
        x = x + pixels.unflatten(2, x.shape[2:])
        for block in self.fuser.layers:
            x = block(x)
        return self.out_proj(x.flatten(2).transpose(1, 2))


class MemoryEncoderStage(nn.Module):
    """embedding (E,N,D), map_index (B), mask_logits (B,m,m) -> maskmem_features (B,N,M). Logits are resized inside."""

    def __init__(self, encoder: MemoryEncoder, image_size: int) -> None:
        super().__init__()
        self.encoder, self.image_size = encoder, image_size

    def forward(self, embedding: Tensor, map_index: Tensor, mask_logits: Tensor) -> tuple[Tensor]:
        mask = upsample(mask_logits, self.image_size).sigmoid()
        return (self.encoder(embedding[map_index], mask),)


class PromptMemoryStage(nn.Module):
    """Memory encoder of SAM 2 with inputs `binarize` (B) bool and, where `absent` is given (SAM 2.1), `score` (B).

    Masks of prompts are binarised, tracked masks keep soft edges; `absent` is added where the object is absent. The
    result is rounded to bfloat16, the type in which the reference stores its memory.
    SAM 3 remembers masks of `mask_size`, which differs from the image's: they are resized to the image and then to that
    size, or at once where the input `direct` (B) bool is true.
    """

    def __init__(
        self, encoder: MemoryEncoder, image_size: int, absent: Tensor | None = None, mask_size: int | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.image_size, self.mask_size = encoder, image_size, mask_size or image_size
        self.register_buffer("absent", None if absent is None else absent.detach()[0].clone())

    def forward(
        self,
        embedding: Tensor,
        map_index: Tensor,
        mask_logits: Tensor,
        binarize: Tensor,
        score: Tensor | None = None,
        direct: Tensor | None = None,
    ) -> tuple[Tensor]:
        logits = upsample(mask_logits, self.image_size)
        mask = torch.where(binarize[:, None, None], (logits > 0).float(), logits.sigmoid())
        if direct is not None:
            at_once = upsample(mask_logits, self.mask_size).sigmoid()
            mask = torch.where(direct[:, None, None], at_once, upsample(mask, self.mask_size))
        slot = self.encoder(embedding[map_index], mask)
        if self.absent is not None:
            slot = slot + torch.where(score > 0, 0.0, 1.0)[:, None, None] * self.absent
        return (slot.to(torch.bfloat16).to(slot.dtype),)
