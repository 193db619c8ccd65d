"""ReferSAM: referring image segmentation on SAM (IEEE TCSVT 2024, 10.1109/TCSVT.2024.3524543).

`ReferSam` is the whole network, the reference of every graph. The official code publishes the model only: image size,
preprocessing and token length follow CARIS, the predecessor by the same authors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from runtime.errors import UserError

from ..layers.text_towers import TOWERS, TowerConfig
from ..layers.vit import VitConfig
from ..stages.prompt_encoder import PromptEncoder
from ..stages.refersam import FuseStage
from ..stages.refersam_adapter import Adapter, Grid, ReferSamAdapterConfig
from ..stages.refersam_decoder import SamDecoder

IMAGE_SIZE = 448
"""Input size of CARIS: 28 ViT cells a side, two windows of 14."""

MAX_TOKENS = 20
"""Maximum tokens of a sentence in CARIS, special tokens included."""

COARSEST_STRIDE = 32
"""Stride of the pyramid's coarsest level; the input size is a multiple of it."""

MAX_IMAGE_SIZE = 2048


@dataclass(frozen=True, slots=True)
class ReferSamConfig:
    """Sizes of a ReferSAM. The weights fit any `image_size`: position tables are resized."""

    image_size: int = IMAGE_SIZE
    max_tokens: int = MAX_TOKENS
    vit: VitConfig = field(default_factory=VitConfig)
    text: TowerConfig = field(default_factory=TowerConfig)
    adapter: ReferSamAdapterConfig = field(default_factory=ReferSamAdapterConfig)
    decoder_heads: int = 8
    decoder_hidden: int = 2048
    decoder_depth: int = 2
    mask_channels: int = 16

    def __post_init__(self) -> None:
        if self.image_size % COARSEST_STRIDE or not COARSEST_STRIDE <= self.image_size <= MAX_IMAGE_SIZE:
            raise UserError(
                f"image size {self.image_size} is not a multiple of {COARSEST_STRIDE} in "
                f"{COARSEST_STRIDE}..{MAX_IMAGE_SIZE}; try {IMAGE_SIZE}"
            )


class ReferSam(nn.Module):
    def __init__(self, config: ReferSamConfig) -> None:
        super().__init__()
        self.config = config
        width = config.vit.out
        self.text_encoder = TOWERS[config.text.kind](config.text)
        self.vl_adapter = Adapter(config.vit, config.adapter)
        self.sam_prompt_encoder = PromptEncoder(IMAGE_SIZE, width, config.mask_channels)
        self.sam_mask_decoder = SamDecoder(width, config.decoder_heads, config.decoder_hidden, config.decoder_depth)
        self.mask_embedding = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.mask_scaling = nn.Conv2d(1, 1, 1)
        self.sparse_embedding = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width, 1e-6)
        )

    def sentence(self, text_blo: Tensor, count_b: Tensor) -> Tensor:
        """Select the token that represents the sentence (B,out): the first of BERT, the last of CLIP."""
        if self.config.text.kind == "bert":
            return text_blo[:, 0]
        return text_blo[torch.arange(text_blo.shape[0], device=text_blo.device), count_b - 1]

    def forward(self, pixels_b3ii: Tensor, tokens_bl: Tensor, count_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment one image (1,3,I,I) with B sentences (B,L) of lengths `count_b`, padded on the right.

        Returns logits (B,I/4,I/4), coarse logits (B,I/4,I/4) and predicted IoU (B), without folds.
        """
        grid = Grid(self.vl_adapter, pixels_b3ii.shape[-1])
        mask = torch.arange(tokens_bl.shape[1], device=tokens_bl.device) < count_b[:, None]
        vit, pyramid, stem = self.vl_adapter.image(pixels_b3ii, grid)
        return FuseStage(self, grid, folded=False)(vit, pyramid, stem, self.text_encoder(tokens_bl, mask), count_b)
