"""Stages of ReferSAM: image encoder, text encoder and their fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.attention import MASKED
from .refersam_adapter import Grid
from .refersam_decoder import coarse_mask


class ImageStage(nn.Module):
    """pixels (1,3,I,I) -> vit (1,s,s,D), pyramid (1,N,D), stem (1,C,I/4,I/4): everything before the text enters."""

    def __init__(self, model: nn.Module, grid: Grid) -> None:
        super().__init__()
        self.adapter, self.grid = model.vl_adapter, grid

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.adapter.image(pixels, self.grid)


class TextStage(nn.Module):
    """tokens (L) int64 -> text (L,W). One sentence without padding, so there is no mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tower = model.text_encoder

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.tower(tokens[None])[0],)


class FuseStage(nn.Module):
    """One encoded image and B sentences -> masks; `networks.refersam.stages` has the signature.

    `text_count` (B) is the number of tokens of each sentence; the remaining rows are padding, hidden as keys and not
    read.
    """

    def __init__(self, model: nn.Module, grid: Grid, folded: bool = True) -> None:
        super().__init__()
        self.model, self.grid, self.folded = model, grid, folded
        dense = model.sam_prompt_encoder.pe_layer.grid(grid.side).detach()
        self.register_buffer("dense_positions", dense, persistent=False)

    def forward(
        self, vit: Tensor, pyramid: Tensor, stem: Tensor, text: Tensor, text_count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        model, adapter, grid = self.model, self.model.vl_adapter, self.grid
        mask = torch.arange(text.shape[1], device=text.device) < text_count[:, None]
        context = mask.new_ones(1, adapter.config.context).expand(text.shape[0], -1)
        bias = torch.where(torch.cat((mask, context), 1), 0.0, MASKED)
        vit, pyramid, language = adapter.fuse(vit, pyramid, text, bias, grid, self.folded)
        levels = adapter.levels(pyramid, grid)
        prompts = adapter.prompt(levels, language, mask, model.sentence(language, text_count), grid, self.folded)
        coarse = coarse_mask(
            model.mask_embedding, adapter.out_conv[3], prompts[:, 0], adapter.fine(stem, levels[0], grid)
        )
        image = adapter.vis_model.neck(vit.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2) + levels[1]
        dense = model.sam_prompt_encoder.masks(model.mask_scaling(coarse[:, None])[:, 0])
        sparse = model.sparse_embedding(prompts[:, 1:])
        low_res, iou = model.sam_mask_decoder(image + dense, self.dense_positions, sparse, grid.side)
        return low_res, coarse, iou
