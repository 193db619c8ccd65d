"""Cross-modal temporal adapter (SAMWISE, CVPR 2025): exchanges information between a clip's maps and a sentence.

Hierarchical selective attention (HSA) attends along time inside one patch of the image; then pixels attend to words and
words to pixels, each multiplied with (not added to) its query.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.attention import PackedAttention
from ..layers.common import ChannelBatchNorm, Pointwise
from ..layers.fold import FoldedAttention, compose, with_batch_norm
from ..layers.positions import sine_steps


def to_patches(x_bthwc: Tensor, side: int) -> Tensor:
    """Partition (B,T,H,W,C) into patches (B*patches,T,side*side,C), frame-major, row-major inside."""
    b, t, h, w, c = x_bthwc.shape
    x = x_bthwc.reshape(b, t, h // side, side, w // side, side, c).permute(0, 2, 4, 1, 3, 5, 6)
    return x.reshape(b * (h // side) * (w // side), t, side * side, c)


def from_patches(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """Undo `to_patches` for sequences (B*patches,T*side*side,C) -> (B,T,H,W,C)."""
    rows, columns, c = height // side, width // side, x.shape[-1]
    frames = x.shape[1] // (side * side)
    x = x.reshape(-1, rows, columns, frames, side, side, c).permute(0, 3, 1, 4, 2, 5, 6)
    return x.reshape(-1, frames, height, width, c)


class CrossAttention(nn.Module):
    """x * attention(x, memory)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = PackedAttention(width, heads)

    def forward(self, x_blc: Tensor, memory_bsc: Tensor, mask_bs: Tensor | None = None) -> Tensor:
        return x_blc * self.multihead_attn(x_blc, memory_bsc, mask_bs)


class SelectiveAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = PackedAttention(width, heads)
        self.linear = nn.Linear(width, width)

    def forward(self, x_blc: Tensor) -> Tensor:
        return self.linear(self.self_attn(x_blc, x_blc))


class Adapter(nn.Module):
    """Trainable module. `patch` is the side of an HSA patch, 0 for an adapter without HSA."""

    def __init__(self, vision_width: int, text_width: int, width: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj_vis_down = nn.Sequential(Pointwise(vision_width, width, False), ChannelBatchNorm(width), nn.ReLU())
        self.proj_vis_up = nn.Sequential(
            Pointwise(width, vision_width, False, transposed=True), ChannelBatchNorm(vision_width), nn.ReLU()
        )
        self.proj_text_down = nn.Sequential(nn.Linear(text_width, width, bias=False))
        self.proj_text_up = nn.Sequential(nn.Linear(width, text_width, bias=False))
        self.ca_V2T = CrossAttention(width, heads)
        self.ca_T2V = CrossAttention(width, heads)
        if patch:
            self.hsa = SelectiveAttention(width, heads)
            self.spatial_pos_embed = nn.Parameter(torch.zeros(1, 1, 1, patch * patch, width))
            self.norm_pre_HSA = nn.LayerNorm(width)
            nn.init.trunc_normal_(self.spatial_pos_embed, std=0.02)

    def patch_tokens(self, x_bthwc: Tensor) -> Tensor:
        """Return the input of HSA: (B,T,H,W,C) -> (B*patches,T*side*side,C) with positions, normed."""
        x = to_patches(x_bthwc, self.patch)
        time = sine_steps(x_bthwc[0, :, 0, 0, 0], x.shape[-1])
        return self.norm_pre_HSA(x + time[:, None] + self.spatial_pos_embed[0, 0, 0]).flatten(1, 2)

    def selective(self, x_bthwc: Tensor) -> Tensor:
        """Apply the HSA branch to maps (B,T,H,W,C)."""
        return from_patches(self.hsa(self.patch_tokens(x_bthwc)), self.patch, *x_bthwc.shape[2:4])

    def forward(self, vision_bthwc: Tensor, text_blw: Tensor, mask_bl: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the residuals of the maps (B,T,H,W,C) and of the sentence (B,L,W)."""
        frames = vision_bthwc.shape[1]
        x = self.proj_vis_down(vision_bthwc.flatten(0, 1)).unflatten(0, (-1, frames))
        t = self.proj_text_down(text_blw)
        y = x + self.selective(x) if self.patch else x
        y = self.ca_V2T(y.flatten(1, 3), t, mask_bl).view_as(x)
        t = self.ca_T2V(t, x.mean(1).flatten(1, 2))
        up = self.proj_vis_up(y.flatten(0, 1)).unflatten(0, (-1, frames))
        return up, self.proj_text_up(t)


def _folded(attention: PackedAttention, out: nn.Linear) -> FoldedAttention:
    return FoldedAttention(attention.in_proj_weight, attention.in_proj_bias, out, attention.heads)


class AdapterStage(nn.Module):
    """vision (T,h,w,C), text (L,W) -> both, adapted. Batch norms and `linear . out_proj` are folded."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.patch = adapter.patch
        self.text_down, self.text_up = adapter.proj_text_down, adapter.proj_text_up
        self.down = with_batch_norm(adapter.proj_vis_down[0], adapter.proj_vis_down[1])
        self.up = with_batch_norm(adapter.proj_vis_up[0], adapter.proj_vis_up[1])
        v2t, t2v = adapter.ca_V2T.multihead_attn, adapter.ca_T2V.multihead_attn
        self.v2t, self.t2v = _folded(v2t, v2t.out_proj), _folded(t2v, t2v.out_proj)
        if adapter.patch:
            attention = adapter.hsa.self_attn
            self.norm = adapter.norm_pre_HSA
            self.attention = _folded(attention, compose(attention.out_proj, adapter.hsa.linear))
            self.register_buffer("positions", adapter.spatial_pos_embed.detach()[0, 0, 0].clone())

    def selective(self, x_thwc: Tensor) -> Tensor:
        x = to_patches(x_thwc[None], self.patch)
        time = sine_steps(x_thwc, x.shape[-1])
        x = self.norm(x + time[:, None] + self.positions).flatten(1, 2)
        # all patches at once need 2 GB of scores for a clip of 8 frames at stride 8
        num_chunks = max(n for n in (1, 2, 4, 8, 16) if x.shape[0] % n == 0)
        return from_patches(self.attention(x, x, (0, num_chunks)), self.patch, *x_thwc.shape[1:3])[0]

    def forward(self, vision: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        x = self.down(vision).relu()
        t = self.text_down(text)[None]
        y = x + self.selective(x) if self.patch else x
        pixels = y.flatten(0, 2)[None]
        y = (pixels * self.v2t(pixels, t))[0].view_as(x)
        t = t * self.t2v(t, x.mean(0).flatten(0, 1)[None])
        return vision + self.up(y).relu(), text + self.text_up(t[0])
