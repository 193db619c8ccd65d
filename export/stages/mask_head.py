"""Mask head of SAM 3: mask logits of kept queries, and the semantic mask of a concept."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import PackedAttention
from ..layers.common import MLP, Group

GROUPS = 8
"""Groups of the pixel decoder's norms."""


def double_map(x_bchw: Tensor) -> Tensor:
    """Upsample (B,C,H,W) by 2, nearest neighbour."""
    return F.interpolate(x_bchw, scale_factor=2.0, mode="nearest")


class MaskHead(nn.Module):
    """Trainable module, named as in the official `segmentation_head`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross_attend_prompt, self.cross_attn_norm = PackedAttention(width, heads), nn.LayerNorm(width)
        self.pixel_decoder = Group(
            conv_layers=nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2)),
            norms=nn.ModuleList(nn.GroupNorm(GROUPS, width) for _ in range(2)),
        )
        self.mask_predictor = Group(mask_embed=MLP(width, width, width, 3))
        self.instance_seg_head, self.semantic_seg_head = nn.Conv2d(width, width, 1), nn.Conv2d(width, 1, 1)

    def pixel_embedding(
        self, encoded_bnd: Tensor, prompt_btd: Tensor, mask_bt: Tensor, level_2_bchw: Tensor, level_4_bchw: Tensor
    ) -> Tensor:
        """Return the pixel embedding (B,D,4s,4s) of encoded maps (B,s*s,D) and two fine levels."""
        attended = self.cross_attend_prompt(self.cross_attn_norm(encoded_bnd), prompt_btd, mask_bt)
        side = level_2_bchw.shape[2] // 2
        x = (encoded_bnd + attended).transpose(1, 2).unflatten(2, (side, side))
        decoder = self.pixel_decoder
        for level, conv, norm in zip((level_2_bchw, level_4_bchw), decoder.conv_layers, decoder.norms, strict=True):
            x = norm(conv(level + double_map(x))).relu()
        return x

    def forward(self, pixels_bdhw: Tensor, queries_bkd: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask logits (B,K,4s,4s) of queries and semantic logits (B,4s,4s).

        The instance map is a 1x1 convolution, and a mask its dot product with a query: the convolution is applied to
        the query instead, which is the same.
        """
        embedded, head = self.mask_predictor.mask_embed(queries_bkd), self.instance_seg_head
        logits = (embedded @ head.weight.flatten(1)) @ pixels_bdhw.flatten(2) + embedded @ head.bias[:, None]
        semantic = self.semantic_seg_head(pixels_bdhw)[:, 0]
        return logits.unflatten(2, pixels_bdhw.shape[2:]), semantic


class MaskHeadStage(nn.Module):
    """encoded (P,N,D), prompt (P,T,D), prompt_mask (P,T), level_2, level_4 (E,D,h,w), map_index (P), queries (P,K,D)
    -> mask_logits (P,K,S4,S4), semantic_logits (P,S4,S4)."""

    def __init__(self, head: MaskHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self,
        encoded: Tensor,
        prompt: Tensor,
        prompt_mask: Tensor,
        level_2: Tensor,
        level_4: Tensor,
        map_index: Tensor,
        queries: Tensor,
    ) -> tuple[Tensor, Tensor]:
        pixels = self.head.pixel_embedding(encoded, prompt, prompt_mask, level_2[map_index], level_4[map_index])
        return self.head(pixels, queries)
