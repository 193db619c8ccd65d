"""Prompt encoder and mask decoder stages of SAM 2, with its rules for multimask output, stability and presence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.common import MLP
from .mask_decoder import MaskDecoder, gate
from .prompt_encoder import PromptEncoder

STABILITY_OFFSET, STABILITY = 0.05, 0.98
"""Mask 0 is stable if its area at logit +offset is at least this fraction of its area at -offset."""

PROMPT_LOGIT = 10.0
"""Logit of a pixel inside a mask prompt; its negative outside."""


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
    """mask (B,P,P) of zeros and ones -> mask_logits (the result), prompt_logits (for the pointer), (B,S4,S4).

    With `no_pointer` (SAM 3) prompt_logits and no_obj_ptr (B,D), the pointer of an absent object: masks are resized by
    the caller.
    """

    def __init__(self, downsample: nn.Conv2d, mask_size: int, no_pointer: Tensor | None = None) -> None:
        super().__init__()
        self.downsample, shrink = downsample, None
        self.register_buffer("no_pointer", None if no_pointer is None else no_pointer.detach().reshape(1, -1).clone())
        if no_pointer is None:
            # an antialiased resize is a constant matrix on the rows, and the same one on the columns
            eye = torch.eye(mask_size)[None, None]
            shrink = F.interpolate(eye, size=(mask_size // 4, mask_size), mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("shrink", shrink)

    def forward(self, mask: Tensor) -> tuple[Tensor, ...]:
        prompt = self.downsample(mask[:, None])[:, 0]
        if self.shrink is None:
            return prompt, self.no_pointer.expand(mask.shape[0], -1)
        logits = 2 * PROMPT_LOGIT * mask - PROMPT_LOGIT
        # the matrix on the right: on the left it is a broadcast operand, whose product uploads pointers on CUDA
        shrink = self.shrink.T
        return (logits.transpose(1, 2) @ shrink).transpose(1, 2) @ shrink, prompt


class PromptDecoderStage(nn.Module):
    """Four masks and the index of the selected one; `docs/architecture.md`, row `prompt_decoder`, has the signature.

    With `multimask` the best of masks 1..3 by predicted IoU is selected, and its token gives the pointer. Without,
    mask 0 is selected, or the best of the others where mask 0 is unstable; the pointer is that of token 0 in both
    cases.
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
        single = torch.zeros_like(best)
        selected = torch.where(multimask | ~stable(out.logits[:, 0]), best, single)
        logits = pick(out.logits, selected)
        pointer = self.pointer(pick(out.tokens, torch.where(multimask, best, single)))
        logits, pointer = gate(out.score, logits, pointer, self.no_pointer)
        return logits, out.logits, out.iou, selected, out.score, pointer


def pick(x: Tensor, index_b: Tensor) -> Tensor:
    """Select entry `index_b` of each row: (B,n,...) -> (B,...)."""
    rows = torch.arange(x.shape[0], device=x.device) * x.shape[1]
    return x.flatten(0, 1)[rows + index_b]


def stable(logits_bhw: Tensor) -> Tensor:
    """Tell for each mask (B) whether it hardly changes with its threshold."""
    inner = (logits_bhw > STABILITY_OFFSET).float().sum((1, 2))
    outer = (logits_bhw > -STABILITY_OFFSET).float().sum((1, 2))
    # an empty mask is stable
    return torch.where(outer > 0, inner / outer.clamp(min=1), 1.0) >= STABILITY
