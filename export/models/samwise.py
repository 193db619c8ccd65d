"""SAMWISE: text-driven video segmentation on SAM 2 (Cuttano et al., CVPR 2025).

`Samwise` is the whole network: it has the parameter names of official checkpoints, can be trained, and is the reference
of every graph. `export.networks.samwise` splits it into stages (see `docs/architecture.md`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..layers.common import Group, upsample
from ..layers.roberta import Roberta, TextConfig
from ..stages.conditional_memory import ConditionalMemory
from ..stages.cross_modal_adapter import Adapter
from ..stages.mask_decoder import MASKS, MaskDecoderOutput, gate
from .sam import Sam, SamConfig


@dataclass(frozen=True, slots=True)
class CrossModalAdapterConfig:
    """Sizes of the cross-modal adapters. `patches` are the sides of HSA patches at strides 8, 16, 32; 0 without HSA."""

    width: int = 256
    heads: int = 8
    patches: tuple[int, int, int] = (8, 4, 2)


@dataclass(frozen=True, slots=True)
class SamwiseConfig:
    """Sizes of a SAMWISE. `text_stages` are the numbers of text layers before each of the three adapters."""

    sam: SamConfig = field(default_factory=lambda: SamConfig(text_width=768))
    text: TextConfig = field(default_factory=TextConfig)
    adapter: CrossModalAdapterConfig = field(default_factory=CrossModalAdapterConfig)
    text_stages: tuple[int, int, int] = (4, 8, 12)
    conditional_hidden: int = 128
    """Hidden width of the conditional memory encoder; 0 for a network without one."""
    conditional_heads: int = 8
    window: int = 8
    """Frames of a clip, which are encoded together."""
    slots: int = 6
    """Remembered frames."""
    pointers: int = 15
    """Remembered object pointers."""


@dataclass(frozen=True, slots=True)
class ClipFeatures:
    """`embedding` (B,T,N,D), `high_res_0` (B,T,D/8,S4,S4), `high_res_1` (B,T,D/4,S8,S8) and `text` (B,L,W) of clips."""

    embedding: Tensor
    high_res_0: Tensor
    high_res_1: Tensor
    text: Tensor


@dataclass(frozen=True, slots=True)
class FrameOutput:
    """`low_res_logits` (B,S4,S4), `iou`, `score` (B), `pointer`, `early_token` (B,D); `decoded` has all masks."""

    low_res_logits: Tensor
    iou: Tensor
    score: Tensor
    pointer: Tensor
    early_token: Tensor
    decoded: MaskDecoderOutput


class Samwise(nn.Module):
    def __init__(self, config: SamwiseConfig) -> None:
        super().__init__()
        self.config = config
        self.text_encoder = Group(model=Group(encoder=Group(sentence_encoder=Roberta(config.text))))
        self.sam = Sam(config.sam)
        self.cmt_adapters = nn.ModuleList(
            Adapter(vision, config.text.width, config.adapter.width, config.adapter.heads, patch)
            for vision, patch in zip(config.sam.hiera.widths[1:], config.adapter.patches, strict=True)
        )
        if config.conditional_hidden:
            self.conditional_memory_encoder = ConditionalMemory(
                config.sam.width, config.conditional_heads, config.conditional_hidden
            )

    @property
    def tower(self) -> Roberta:
        """The text tower."""
        return self.text_encoder.model.encoder.sentence_encoder

    def encode_clip(self, pixels_bt3ii: Tensor, tokens_bl: Tensor, mask_bl: Tensor | None = None) -> ClipFeatures:
        """Encode clips (B,T,3,I,I) with one sentence each (B,L). `mask_bl` is true for tokens; None: no padding."""
        frames, trunk = pixels_bt3ii.shape[1], self.sam.trunk
        finest = trunk.run(0, trunk.start(pixels_bt3ii.flatten(0, 1)))
        adapted, text = self.run_adapters(trunk.run(1, finest), tokens_bl, mask_bl, frames)
        maps = [finest, *adapted]
        return ClipFeatures(*(y.unflatten(0, (-1, frames)) for y in self.sam.features(maps)), text)

    def run_adapters(
        self, x_bhwc: Tensor, tokens_bl: Tensor, mask_bl: Tensor | None, frames: int
    ) -> tuple[list[Tensor], Tensor]:
        """Run the trunk from its map at stride 8, the text tower and the adapters. Returns three maps, and the text."""
        maps, text, done = [], self.tower.embed(tokens_bl, mask_bl), 0
        for stage, (adapter, last) in enumerate(zip(self.cmt_adapters, self.config.text_stages, strict=True), 1):
            x_bhwc = self.sam.trunk.run(stage, x_bhwc) if stage > 1 else x_bhwc
            text = self.tower.run(done, last, text, mask_bl)
            vision_add, text_add = adapter(x_bhwc.unflatten(0, (-1, frames)), text, mask_bl)
            x_bhwc, text, done = x_bhwc + vision_add.flatten(0, 1), text + text_add, last
            maps.append(x_bhwc)
        return maps, text

    def prompt(self, text_blw: Tensor, verb_b: Tensor | None = None) -> Tensor:
        """Encode fused text as decoder tokens (B,3 or 4,D). `verb_b` is the index of each sentence's verb token."""
        verb = None if verb_b is None else text_blw[torch.arange(len(text_blw), device=text_blw.device), verb_b]
        return self.sam.sam_prompt_encoder.text(text_blw[:, 0], verb)

    def attend_memory(
        self, embedding_bnd: Tensor, memory_bsnm: Tensor, maskmem_tpos_index_bs: Tensor, pointers_bpd: Tensor
    ) -> Tensor:
        """Condition a map on the memory; see `Sam.attend_memory`."""
        return self.sam.attend_memory(embedding_bnd, memory_bsnm, maskmem_tpos_index_bs, pointers_bpd)

    def add_no_mem_embed(self, embedding_bnd: Tensor) -> Tensor:
        """Return the input of the mask decoder for frames without memory."""
        return self.sam.add_no_mem_embed(embedding_bnd)

    def decode(
        self,
        conditioned_bnd: Tensor,
        sparse_bkd: Tensor,
        high_res_0: Tensor,
        high_res_1: Tensor,
        mask_bk: Tensor | None = None,
        dense_bnd: Tensor | None = None,
        masks: int = MASKS,
    ) -> FrameOutput:
        """Decode frames. `mask_bk` is true for prompt tokens that are not padding, `dense_bnd` is a mask prompt.

        In training mode the logits are not gated by the object score (a gate passes no gradient); the pointer always
        is.
        """
        prompts = self.sam.sam_prompt_encoder
        dense = prompts.no_mask_embed.weight[0] if dense_bnd is None else dense_bnd
        grid = prompts.pe_layer.grid(self.config.sam.side)
        image = conditioned_bnd + dense
        out = self.sam.sam_mask_decoder(image, grid, sparse_bkd, high_res_0, high_res_1, mask_bk, masks)
        logits, pointer = out.logits[:, 0], self.sam.obj_ptr_proj(out.tokens[:, 0])
        if self.config.sam.object_score:
            gated, pointer = gate(out.score, logits, pointer, self.sam.no_pointer)
            logits = logits if self.training else gated
        return FrameOutput(logits, out.iou[:, 0], out.score, pointer, out.early[:, 0], out)

    def encode_memory(self, embedding_bnd: Tensor, mask_logits_bhw: Tensor) -> Tensor:
        """Encode a map before memory attention and mask logits of any size as a memory slot (B,N,M)."""
        mask = upsample(mask_logits_bhw, self.config.sam.image_size).sigmoid()
        return self.sam.memory_encoder(embedding_bnd, mask)

    def cme_logits(self, pointer_bd: Tensor, early_bd: Tensor) -> Tensor:
        """Return the logits of the conditional memory encoder (B,2): (stay, switch)."""
        return self.conditional_memory_encoder(pointer_bd, early_bd)
