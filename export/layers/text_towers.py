"""BERT and CLIP text towers, named as in `transformers` checkpoints (`text_encoder.` of ReferSAM).

Both take one sentence, or a batch of sentences padded on the right. The modules of `transformers` are not used, because
their mask helpers do not trace with a symbolic length; tests compare with the originals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MASKED, Attention
from .common import Group

HEAD_WIDTH = 64
"""Width of one attention head in every published BERT and CLIP text tower."""


@dataclass(frozen=True, slots=True)
class TowerConfig:
    """Sizes of a tower. `kind` is "bert" or "clip"; `activation` "gelu" (exact) or "quick_gelu" (OpenAI's CLIP)."""

    kind: str = "bert"
    vocabulary: int = 30522
    positions: int = 512
    width: int = 768
    hidden: int = 3072
    layers: int = 12
    heads: int = 12
    activation: str = "gelu"


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class BertLayer(nn.Module):
    """Post-norm layer; the nested names are those of the checkpoint."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        w = config.width
        self.heads = config.heads
        self.attention = Group(output=Group(dense=nn.Linear(w, w), LayerNorm=nn.LayerNorm(w, 1e-12)))
        self.attention.add_module("self", Group(query=nn.Linear(w, w), key=nn.Linear(w, w), value=nn.Linear(w, w)))
        self.intermediate = Group(dense=nn.Linear(w, config.hidden))
        self.output = Group(dense=nn.Linear(config.hidden, w), LayerNorm=nn.LayerNorm(w, 1e-12))
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_blw: Tensor, bias_blm: Tensor | None) -> Tensor:
        attention, output = self.attention.self, self.attention.output
        q, k, v = attention.query(x_blw), attention.key(x_blw), attention.value(x_blw)
        x = output.LayerNorm(x_blw + output.dense(_attend(q, k, v, self.heads, bias_blm)))
        return self.output.LayerNorm(x + self.output.dense(self.activation(self.intermediate.dense(x))))


class Bert(nn.Module):
    """BERT up to its last hidden state; token type 0, no pooler."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Group(
            word_embeddings=nn.Embedding(config.vocabulary, config.width),
            position_embeddings=nn.Embedding(config.positions, config.width),
            token_type_embeddings=nn.Embedding(2, config.width),
            LayerNorm=nn.LayerNorm(config.width, 1e-12),
        )
        self.encoder = Group(layer=nn.ModuleList(BertLayer(config) for _ in range(config.layers)))

    def forward(self, tokens_bl: Tensor, mask_bl: Tensor | None = None) -> Tensor:
        """Encode token ids (B,L) int64 as (B,L,W). `mask_bl` is true for tokens; None: no padding."""
        table = self.embeddings
        positions = table.position_embeddings.weight[: tokens_bl.shape[1]]
        x = table.LayerNorm(table.word_embeddings(tokens_bl) + positions + table.token_type_embeddings.weight[0])
        bias = None if mask_bl is None else torch.where(mask_bl, 0.0, MASKED)[:, None]
        for layer in self.encoder.layer:
            x = layer(x, bias)
        return x


class ClipLayer(nn.Module):
    """Pre-norm layer."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.width, config.heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.mlp = Group(fc1=nn.Linear(config.width, config.hidden), fc2=nn.Linear(config.hidden, config.width))
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_blw: Tensor, bias_blm: Tensor) -> Tensor:
        x, attention = self.layer_norm1(x_blw), self.self_attn
        q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
        x = x_blw + attention.out_proj(_attend(q, k, v, attention.heads, bias_blm))
        return x + self.mlp.fc2(self.activation(self.mlp.fc1(self.layer_norm2(x))))


class ClipText(nn.Module):
    """CLIP's text tower up to the final norm, without projection; attention is causal."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = Group(
            embeddings=Group(
                token_embedding=nn.Embedding(config.vocabulary, config.width),
                position_embedding=nn.Embedding(config.positions, config.width),
            ),
            encoder=Group(layers=nn.ModuleList(ClipLayer(config) for _ in range(config.layers))),
            final_layer_norm=nn.LayerNorm(config.width),
        )

    def forward(self, tokens_bl: Tensor, mask_bl: Tensor | None = None) -> Tensor:
        """Encode token ids (B,L) int64 as (B,L,W). `mask_bl` is true for tokens; padding is on the right."""
        model, table = self.text_model, self.text_model.embeddings
        x = table.token_embedding(tokens_bl) + table.position_embedding.weight[: tokens_bl.shape[1]]
        steps = torch.arange(tokens_bl.shape[1], device=tokens_bl.device)
        bias = torch.where(steps[None] <= steps[:, None], 0.0, MASKED)[None]
        if mask_bl is not None:
            bias = bias + torch.where(mask_bl, 0.0, MASKED)[:, None]
        for layer in model.encoder.layers:
            x = layer(x, bias)
        return model.final_layer_norm(x)


TOWERS = {"bert": Bert, "clip": ClipText}


def _attend(q_blw: Tensor, k_blw: Tensor, v_blw: Tensor, heads: int, bias_blm: Tensor | None) -> Tensor:
    """Attend with a bias per pair of tokens, which the shared `attend` does not support."""
    q, k, v = (x.unflatten(2, (heads, x.shape[2] // heads)).transpose(1, 2) for x in (q_blw, k_blw, v_blw))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    if bias_blm is not None:
        scores = scores + bias_blm[:, None]
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
