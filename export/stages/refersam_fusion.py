"""Fusion of sentence and image in ReferSAM: vision-language layers and the prompter.

Each attention has many image tokens on one side and few text rows on the other. With `folded` the projections of the
image side move to the rows: per head q (Wk x)' = (q Wk) x' and softmax(..) (x Wv) = (softmax(..) x) Wv, and likewise
with image tokens as queries. A bias of Wk is the same for all keys of a row and drops out of the softmax; a bias of Wv
passes through, because the weights sum to 1. This is exact algebra, and for 36 rows it halves the products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import MASKED, Attention

EPS = 1e-6


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LevelAttention(Attention):
    """Attention to a pyramid: a softmax per level, then a sum of the levels with weights from the query."""

    def __init__(self, width: int, heads: int, inner: int, key_width: int, levels: int = 3) -> None:
        super().__init__(width, heads, inner, key_width)
        self.level_weights = nn.Linear(width, heads * levels)

    def forward(
        self, q_bld: Tensor, k_bnc: Tensor, v_bnc: Tensor, sizes: tuple[int, ...], folded: bool = False
    ) -> Tensor:
        """Attend from queries (B,L,D) to keys and values (B,N,C); `sizes` are the tokens per level."""
        h = self.heads
        weights = self.level_weights(q_bld).unflatten(2, (h, len(sizes))).softmax(-1).transpose(1, 2)
        if folded:
            return self.out_proj(self._folded(self.q_proj(q_bld), weights.flatten(1, 2), k_bnc, v_bnc, sizes))
        q, k, v = (
            p(x).unflatten(2, (h, -1)).transpose(1, 2)
            for p, x in ((self.q_proj, q_bld), (self.k_proj, k_bnc), (self.v_proj, v_bnc))
        )
        mixed = _weights(q * q.shape[-1] ** -0.5 @ k.transpose(2, 3), weights, sizes) @ v
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _folded(
        self, q_bld: Tensor, weights_bms: Tensor, k_bnc: Tensor, v_bnc: Tensor, sizes: tuple[int, ...]
    ) -> Tensor:
        h = self.heads
        q = _by_head(q_bld, h)
        rows = _rows(_times(q * q.shape[-1] ** -0.5, self.k_proj.weight.unflatten(0, (h, -1))))
        mixed = _weights(rows @ k_bnc.transpose(1, 2), weights_bms, sizes) @ v_bnc
        values = self.v_proj.weight.unflatten(0, (h, -1)).transpose(1, 2)
        mixed = _times(mixed.unflatten(1, (h, -1)).transpose(0, 1), values)
        return mixed.permute(1, 2, 0, 3).flatten(2) + self.v_proj.bias


def _by_head(x_blc: Tensor, heads: int) -> Tensor:
    """Cut rows (B,L,h*d) into (h,B,L,d)."""
    return x_blc.unflatten(2, (heads, -1)).permute(2, 0, 1, 3)


def _rows(x_hblc: Tensor) -> Tensor:
    """Put the rows of a sentence's heads one after another: (h,B,L,C) -> (B,h*L,C)."""
    return x_hblc.transpose(0, 1).flatten(1, 2)


def _times(x_hblc: Tensor, weights_hck: Tensor) -> Tensor:
    """Multiply rows with the weights of their head: (h,B,L,C) and (h,C,K) -> (h,B,L,K).

    Heads come first, because on CUDA a product that repeats an operand for each sentence uploads a table of pointers.
    """
    return (x_hblc.flatten(1, 2) @ weights_hck).unflatten(1, x_hblc.shape[1:3])


def _weights(scores: Tensor, levels: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return weights of keys (..,N) from their scores (..,N): a softmax per level, times the level's weight (..,S).

    Scores are split, not keys and values: they are smaller, and along the last axis CUDA's split of three unequal parts
    uploads no table of pointers.
    """
    parts = zip(scores.split(sizes, -1), levels.split(1, -1), strict=True)
    return torch.cat([part.softmax(-1) * level for part, level in parts], -1)


def attend_to_text(
    attention: Attention, q_bnc: Tensor, text_bmd: Tensor, bias_bm: Tensor, folded: bool = False
) -> Tensor:
    """Attend from image tokens (B,N,C) to text rows (B,M,D); `bias_bm` is added to the scores."""
    if not folded:
        return attention(q_bnc, text_bmd, text_bmd, bias_bm > MASKED / 2)
    h = attention.heads
    k, v = (_by_head(p(text_bmd), h) for p in (attention.k_proj, attention.v_proj))
    k = k * k.shape[-1] ** -0.5
    keys = _rows(_times(k, attention.q_proj.weight.unflatten(0, (h, -1))))
    query_bias = _times(k, attention.q_proj.bias.unflatten(0, (h, -1))[:, :, None])[..., 0]
    bias = (query_bias + bias_bm).transpose(0, 1).flatten(1, 2)
    values = _rows(_times(v, attention.out_proj.weight.T.unflatten(0, (h, -1))))
    scores = q_bnc @ keys.transpose(1, 2) + bias[:, None]
    weights = scores.unflatten(2, (h, -1)).softmax(-1).flatten(2)
    return weights @ values + attention.out_proj.bias


class VisionLanguage(nn.Module):
    """Cross-attention in both directions, post-norm: text and context are updated first, then the pyramid."""

    def __init__(self, width: int, text_width: int, heads: int, ratio: int = 2) -> None:
        super().__init__()
        self.l2v_cross_attn = LevelAttention(text_width, heads, width, width)
        self.p2l_cross_attn = Attention(text_width, heads, width)
        self.v2l_cross_attn = Attention(width, heads, width, text_width)
        self.prompt_mlp = FeedForward(text_width, ratio * text_width)
        self.vis_mlp = FeedForward(width, ratio * width)
        self.gamma_v2l = nn.Parameter(torch.ones(1, 1, width))
        self.gamma_l2v = nn.Parameter(torch.ones(1, 1, text_width))
        self.v_norm1, self.v_norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.l_norm1, self.l_norm2, self.l_norm3 = (nn.LayerNorm(text_width, EPS) for _ in range(3))

    def forward(
        self,
        pyramid_bnd: Tensor,
        rows_bmw: Tensor,
        bias_bm: Tensor,
        positions_nd: Tensor,
        sizes: tuple[int, ...],
        folded: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Update the pyramid (B,N,D) and rows of text and context (B,M,W); `bias_bm` hides padding."""
        x, keys = rows_bmw, pyramid_bnd + positions_nd
        x = self.l_norm2(x + self.p2l_cross_attn(x, x, x, bias_bm > MASKED / 2))
        x = self.l_norm1(x + self.l2v_cross_attn(x, keys, pyramid_bnd, sizes, folded) * self.gamma_l2v)
        x = self.l_norm3(x + self.prompt_mlp(x))
        y = self.v_norm1(pyramid_bnd + attend_to_text(self.v2l_cross_attn, keys, x, bias_bm, folded) * self.gamma_v2l)
        return self.v_norm2(y + self.vis_mlp(y)), x


class PromptLayer(nn.Module):
    """Prompts attend to each other, to the pyramid and to the sentence; only the prompts are updated."""

    def __init__(self, width: int, heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.p2v_cross_attn = LevelAttention(width, heads, width, width)
        self.p2l_cross_attn = Attention(width, heads)
        self.p_self_attn = Attention(width, heads)
        self.prompt_mlp = FeedForward(width, ratio * width)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width, EPS) for _ in range(4))

    def forward(
        self,
        prompts_bpd: Tensor,
        pyramid_bnd: Tensor,
        text_bld: Tensor,
        mask_bl: Tensor,
        prompt_positions_pd: Tensor,
        positions_nd: Tensor,
        sizes: tuple[int, ...],
        folded: bool = False,
    ) -> Tensor:
        q = prompts_bpd + prompt_positions_pd
        x = self.norm1(prompts_bpd + self.p_self_attn(q, q, prompts_bpd))
        keys = pyramid_bnd + positions_nd
        x = self.norm2(x + self.p2v_cross_attn(x + prompt_positions_pd, keys, pyramid_bnd, sizes, folded))
        x = self.norm3(x + self.p2l_cross_attn(x + prompt_positions_pd, text_bld, text_bld, mask_bl))
        return self.norm4(x + self.prompt_mlp(x))
