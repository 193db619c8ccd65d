"""RoBERTa text tower (post-norm), named as in fairseq checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention

HEAD_WIDTH = 64
"""Width of one attention head in the published towers."""


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Sizes of a text tower; tokens never use the first pad+1 of the `positions` rows of the table."""

    vocabulary: int = 50265
    positions: int = 514
    width: int = 768
    hidden: int = 3072
    layers: int = 12
    heads: int = 12
    pad: int = 1

    @property
    def max_tokens(self) -> int:
        return self.positions - self.pad - 1


class RobertaLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, x_blw: Tensor, mask_bl: Tensor | None = None) -> Tensor:
        x = self.self_attn_layer_norm(x_blw + self.self_attn(x_blw, x_blw, x_blw, mask_bl))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class Roberta(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.embed_positions = nn.Embedding(config.positions, config.width)
        self.layernorm_embedding = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(RobertaLayer(config) for _ in range(config.layers))
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        nn.init.normal_(self.embed_positions.weight, std=0.02)

    def embed(self, tokens_bl: Tensor, mask_bl: Tensor | None = None) -> Tensor:
        """Embed token ids (B,L) as (B,L,W). `mask_bl` is true for tokens; without it there is no padding."""
        first = self.config.pad + 1
        if mask_bl is None:
            positions = self.embed_positions.weight[first : first + tokens_bl.shape[1]]
            return self.layernorm_embedding(self.embed_tokens(tokens_bl) + positions)
        rows = mask_bl.long().cumsum(1) * mask_bl + self.config.pad
        x = self.layernorm_embedding(self.embed_tokens(tokens_bl) + self.embed_positions(rows))
        return x * mask_bl[..., None]

    def run(self, first: int, last: int, x_blw: Tensor, mask_bl: Tensor | None = None) -> Tensor:
        """Apply layers first..last-1."""
        for layer in self.layers[first:last]:
            x_blw = layer(x_blw, mask_bl)
        return x_blw
