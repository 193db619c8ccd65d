"""Modules of SAM 2, named as in its checkpoints; SAMWISE contains them under `sam.`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..layers.common import MLP, Group
from ..layers.hiera import STRIDES, Hiera, HieraConfig
from ..stages.mask_decoder import MaskDecoder
from ..stages.memory_attention import MemoryAttention
from ..stages.memory_encoder import MemoryEncoder
from ..stages.neck import Neck
from ..stages.prompt_encoder import PromptEncoder


@dataclass(frozen=True, slots=True)
class SamConfig:
    """Sizes of SAM 2's modules. `width` (D) is a multiple of `memory_width` (M) and of 8."""

    image_size: int = 1024
    hiera: HieraConfig = field(default_factory=HieraConfig)
    has_trunk: bool = True
    """False: features come from outside (SAM 3), and `hiera` is not used."""
    stride: int = STRIDES[2]
    """Image pixels per position of the embedding: that of the third stage of a Hiera trunk."""
    width: int = 256
    memory_width: int = 64
    ages: int = 7
    """Rows of the temporal embedding (num_maskmem)."""
    memory_layers: int = 4
    memory_hidden: int = 2048
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_hidden: int = 2048
    iou_hidden: int = 256
    prompt_channels: int = 16
    """Channels of the mask prompt before its last convolution."""
    mask_channels: tuple[int, ...] = (4, 16, 64, 256)
    """Channels of the memory encoder's mask path."""
    fuser_blocks: int = 2
    object_score: bool = True
    text_width: int = 0
    """Width of the sentence vector; 0 where prompts are points, boxes and masks only."""
    motion: bool = False
    source_masks: bool = False
    """Masks are prompted at the size of the source, and resized outside, also where the image has the same (SAM 3)."""
    pointer_positions: bool = False
    """SAM 2.1: pointers have temporal positions, and the memory of absent objects is marked."""

    @property
    def side(self) -> int:
        """Side of the embedding."""
        return self.image_size // self.stride

    @property
    def mask_size(self) -> int:
        """Side of a mask that is prompted or remembered: four times that of the decoder's logits."""
        return 16 * self.side

    @property
    def resizes_masks(self) -> bool:
        """Whether prompted masks are resized outside (SAM 3)."""
        return self.source_masks or self.mask_size != self.image_size


class Sam(nn.Module):
    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        c, width, memory = config, config.width, config.memory_width
        if c.has_trunk:
            self.image_encoder = Group(trunk=Hiera(c.hiera), neck=Neck(c.hiera.widths, width))
        self.maskmem_tpos_enc = nn.Parameter(0.02 * torch.randn(c.ages, 1, 1, memory))
        self.no_mem_embed = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.mask_downsample = nn.Conv2d(1, 1, 4, 4)
        self.memory_attention = MemoryAttention(c.side, width, memory, c.memory_hidden, c.memory_layers)
        self.memory_encoder = MemoryEncoder(width, memory, c.mask_channels, c.fuser_blocks)
        self.sam_prompt_encoder = PromptEncoder(c.image_size, width, c.prompt_channels, c.text_width, c.motion)
        self.sam_mask_decoder = MaskDecoder(
            width, c.decoder_heads, c.decoder_hidden, c.decoder_depth, c.iou_hidden, c.object_score
        )
        self.obj_ptr_proj = MLP(width, width, width, 3)
        if c.object_score:
            self.no_obj_ptr = nn.Parameter(0.02 * torch.randn(1, width))
        if c.pointer_positions:
            self.no_obj_embed_spatial = nn.Parameter(0.02 * torch.randn(1, memory))
            self.obj_ptr_tpos_proj = nn.Linear(width, memory)

    @property
    def trunk(self) -> Hiera:
        return self.image_encoder.trunk

    @property
    def neck(self) -> Neck:
        return self.image_encoder.neck

    @property
    def no_pointer(self) -> Tensor:
        """Pointer of an absent object (1,D); zeros in a network without object scores, which never uses it."""
        return self.no_obj_ptr if self.config.object_score else self.no_mem_embed.new_zeros(1, self.config.width)

    def features(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the map (B,N,D) and the decoder's fine maps (B,C,h,w) of the outputs of the four trunk stages."""
        neck, convs = self.neck, (self.sam_mask_decoder.conv_s0, self.sam_mask_decoder.conv_s1)
        fine_0, fine_1 = (conv(neck.lateral(i)(maps[i])).permute(0, 3, 1, 2) for i, conv in enumerate(convs))
        return neck.embedding(maps[2], maps[3]).flatten(1, 2), fine_0, fine_1

    def add_no_mem_embed(self, embedding_bnd: Tensor) -> Tensor:
        """Return the input of the mask decoder for a frame without memory."""
        return embedding_bnd + self.no_mem_embed

    def attend_memory(
        self,
        embedding_bnd: Tensor,
        memory_bsnm: Tensor,
        maskmem_tpos_index_bs: Tensor,
        pointers_bpd: Tensor,
        pointer_positions_bpm: Tensor | None = None,
    ) -> Tensor:
        """Condition a map (B,N,D) on memory (B,S,N,M) and object pointers (B,P,D).

        `maskmem_tpos_index_bs` (B,S) int64 are rows of the temporal embedding. Returns (B,N,D).
        """
        ages = self.maskmem_tpos_enc[:, 0, 0][maskmem_tpos_index_bs]
        return self.memory_attention(embedding_bnd, memory_bsnm, ages, pointers_bpd, pointer_positions_bpm)
