"""Mask decoder of ReferSAM: coarse mask of the sentence, then the mask decoder of the first SAM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.common import MLP
from .mask_decoder import MASKS, TwoWayTransformer, upscaling


class SamDecoder(nn.Module):
    """Mask decoder of the first SAM: two-way transformer without fine maps; only mask 0 of four is computed."""

    def __init__(self, width: int, heads: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(width, heads, hidden, depth)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASKS, width)
        self.output_upscaling = upscaling(width)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(width, width, width // 8, 3) for _ in range(MASKS))
        self.iou_prediction_head = MLP(width, width, MASKS, 3)

    def forward(self, image_bnd: Tensor, grid_nd: Tensor, sparse_bkd: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Decode mask 0 from image tokens with the dense prompt added.

        Returns its logits (B,4*side,4*side) and its IoU (B) before a sigmoid.
        """
        output_tokens = torch.cat((self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((output_tokens.expand(sparse_bkd.shape[0], -1, -1), sparse_bkd), 1)
        tokens, image, _ = self.transformer(tokens, image_bnd, grid_nd, None)
        fine = self.output_upscaling(image.transpose(1, 2).unflatten(2, (side, side)))
        hyper = self.output_hypernetworks_mlps[0](tokens[:, 1])
        logits = (hyper[:, None] @ fine.flatten(2))[:, 0].unflatten(1, (4 * side, 4 * side))
        return logits, self.iou_prediction_head(tokens[:, 0])[:, 0]


def coarse_mask(embedding: nn.Sequential, last: nn.Conv2d, prompt_bo: Tensor, fine_boss: Tensor) -> Tensor:
    """Return the dot product of the sentence prompt with the stride-4 map: (B,I/4,I/4).

    The last 1x1 convolution of the map, `last`, has no other use, so it is applied to the prompt: (W'm).G + m.b instead
    of m.(W G + b), one row instead of 0.8 GMAC.
    """
    m = embedding(prompt_bo)
    # the bias as a matrix: a product with a vector uploads a table of pointers on CUDA
    row, constant = m @ last.weight.flatten(1), m @ last.bias[:, None]
    return (row[:, None] @ fine_boss.flatten(2)).unflatten(2, fine_boss.shape[2:])[:, 0] + constant[:, :, None]
