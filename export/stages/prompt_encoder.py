"""Prompt encoder: sentences, verbs, points, boxes (two points) and masks to tokens of the mask decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.common import MLP, LayerNorm2d
from ..layers.positions import RandomPositions


class PromptEncoder(nn.Module):
    """Trainable module. `text_width` is 0 without sentences (SAM 2); `image_size` scales point coordinates."""

    def __init__(
        self, image_size: int, width: int, mask_channels: int, text_width: int = 0, motion: bool = False
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.pe_layer = RandomPositions(width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.no_mask_embed = nn.Embedding(1, width)
        quarter = mask_channels // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, quarter, 2, 2),
            LayerNorm2d(quarter),
            nn.GELU(),
            nn.Conv2d(quarter, mask_channels, 2, 2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, width, 1),
        )
        if text_width:
            self.project_text = MLP(text_width, width, width, 3)
        if motion:
            self.project_motion_prompts = MLP(text_width, width, width, 3)

    def points(self, xy_bk2: Tensor, labels_bk: Tensor) -> Tensor:
        """Encode points in input pixels as (B,K,D); labels: -1 none, 0 negative, 1 positive, 2 and 3 box corners."""
        table = torch.cat((self.not_a_point_embed.weight, *(e.weight for e in self.point_embeddings)))
        code = self.pe_layer((xy_bk2 + 0.5) / self.image_size)
        return torch.where(labels_bk[..., None] < 0, 0.0, code) + F.embedding(labels_bk + 1, table)

    def masks(self, logits_bhw: Tensor) -> Tensor:
        """Encode low-res mask logits (B,S4,S4) as a dense prompt (B,N,D)."""
        return self.mask_downscaling(logits_bhw[:, None]).flatten(2).transpose(1, 2)

    def text(self, sentence_bw: Tensor, verb_bw: Tensor | None = None) -> Tensor:
        """Encode a sentence as tokens (B,3 or 4,D): an empty click and its padding, the sentence, the verb if any."""
        no_points = self.not_a_point_embed.weight.expand(sentence_bw.shape[0], 2, -1)
        tokens = [no_points, self.project_text(sentence_bw)[:, None]]
        if verb_bw is not None:
            tokens.append(self.project_motion_prompts(verb_bw)[:, None])
        return torch.cat(tokens, 1)


class TextPromptStage(nn.Module):
    """text_2_fused (L,W), [verb (1) int64: index of the verb's token] -> sparse (1,K,D)."""

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, text: Tensor, verb: Tensor | None = None) -> tuple[Tensor]:
        return (self.encoder.text(text[:1], None if verb is None else text[verb]),)
