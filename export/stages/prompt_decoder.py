"""Clicks, boxes and masks to one mask: what every rule of SAM 2 about candidates, stability and presence comes to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.common import MLP
from .mask_decoder import MaskDecoder, gate
from .prompt_encoder import PromptEncoder

STABILITY_OFFSET, STABILITY = 0.05, 0.98
"""Mask 0 is stable when at least this part of its area at logit -offset is still there at +offset."""

CERTAIN = 10.0
"""Logit of a pixel that a mask prompt sets; minus that where it does not."""


class PromptEncoderStage(nn.Module):
    """points (B,K,2) in input pixels, labels (B,K), prompt_logits (B,S4,S4), has_mask (B) -> sparse (B,K,D), dense.

    Labels: -1 no point, 0 negative, 1 positive, 2 and 3 the corners of a box.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, points: Tensor, labels: Tensor, prompt_logits: Tensor, has_mask: Tensor) -> tuple[Tensor, Tensor]:
        dense = self.encoder.masks(prompt_logits)
        dense = torch.where(has_mask[:, None, None], dense, self.encoder.no_mask_embed.weight)
        return self.encoder.points(points, labels), dense


class MaskPromptStage(nn.Module):
    """mask (B,I,I) of zeros and ones -> mask_logits (B,S4,S4), its result; prompt_logits (B,S4,S4) for its pointer."""

    def __init__(self, downsample: nn.Conv2d, image_size: int) -> None:
        super().__init__()
        self.downsample = downsample
        # an antialiased resize is a fixed matrix on rows and the same on columns
        eye = torch.eye(image_size)[None, None]
        shrink = F.interpolate(eye, size=(image_size // 4, image_size), mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("shrink", shrink)

    def forward(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        logits = 2 * CERTAIN * mask - CERTAIN
        return self.shrink @ logits @ self.shrink.T, self.downsample(mask[:, None])[:, 0]


class PromptDecoderStage(nn.Module):
    """Four masks, and which of them counts. Signature: see `docs/architecture.md`, row `prompt_decoder`.

    With `multimask` the best of masks 1..3 by expected IoU, and its token makes the pointer. Without, mask 0, or the
    best of the others where mask 0 is unstable; the pointer is that of token 0 in both cases.
    """

    def __init__(
        self, decoder: MaskDecoder, prompts: PromptEncoder, pointer: MLP, no_pointer: Tensor, side: int
    ) -> None:
        super().__init__()
        self.decoder, self.pointer = decoder, pointer
        self.register_buffer("grid", prompts.pe_layer.grid(side).detach())
        self.register_buffer("no_pointer", no_pointer.detach()[0].clone())

    def forward(
        self,
        conditioned: Tensor,
        sparse: Tensor,
        sparse_count: Tensor,
        dense: Tensor,
        high_res_0: Tensor,
        picture_index: Tensor,
        high_res_1: Tensor,
        map_index: Tensor,
        multimask: Tensor,
    ) -> tuple[Tensor, ...]:
        mask = torch.arange(sparse.shape[1], device=sparse.device) < sparse_count[:, None]
        fine = high_res_0[picture_index], high_res_1[map_index]
        out = self.decoder(conditioned + dense, self.grid, sparse, *fine, mask)
        best = 1 + out.iou[:, 1:].argmax(1)
        alone = torch.zeros_like(best)
        selected = torch.where(multimask | ~stable(out.logits[:, 0]), best, alone)
        logits = pick(out.logits, selected)
        pointer = self.pointer(pick(out.tokens, torch.where(multimask, best, alone)))
        logits, pointer = gate(out.score, logits, pointer, self.no_pointer)
        return logits, out.logits, out.iou, selected, out.score, pointer


def pick(x: Tensor, index_b: Tensor) -> Tensor:
    """(B,n,...) -> (B,...), entry `index_b` of each row."""
    rows = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return x.flatten(0, 1)[rows + index_b]


def stable(logits_bhw: Tensor) -> Tensor:
    """(B) whether a mask hardly changes when its threshold moves."""
    inner = (logits_bhw > STABILITY_OFFSET).float().sum((1, 2))
    outer = (logits_bhw > -STABILITY_OFFSET).float().sum((1, 2))
    # a mask without any area is stable
    return torch.where(outer > 0, inner / outer.clamp(min=1), 1.0) >= STABILITY
