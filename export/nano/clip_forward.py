"""Forward pass of a whole clip through `Samwise`: encoding in windows, tracking with memory, conditional memory.

Shared by training (gradients; all prompts of a clip share the first stages of the trunk) and evaluation. B counts
clips, K prompts per clip, O = B*K objects (clip-major).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers.common import upsample
from ..models.samwise import FrameOutput, Samwise
from ..stages.conditional_memory import reweight
from ..stages.mask_decoder import NO_OBJECT_LOGIT

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONDITIONING_ROW = 6
"""Row of `maskmem_tpos_enc` for the prompted frame of SAM 2, which is never forgotten; sentences never use it."""


class EncodedClip(NamedTuple):
    """Features of a clip: `embedding` (O,T,N,D), `high_res_0` (O,T,D/8,S4,S4), `high_res_1` (O,T,D/4,S8,S8), `sparse`
    prompt embeddings (O,T,K,D), and before any sentence `shared` (B,T,S8*S8,C)."""

    embedding: Tensor
    high_res_0: Tensor
    high_res_1: Tensor
    sparse: Tensor
    shared: Tensor

    def decoder_inputs(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.sparse[:, t], self.high_res_0[:, t], self.high_res_1[:, t]


class Decision(NamedTuple):
    """Decision of the conditional memory encoder on a frame: logits (O,2), and mask logits without memory (O,S4,S4)."""

    frame: int
    logits: Tensor
    memoryless_logits: Tensor


class TrackedClip(NamedTuple):
    """Outputs for a clip: `logits` (O,T,S4,S4), `iou`, `score` (O,T), decisions; `all_logits` (O,T,n,S4,S4) and
    `all_ious` (O,T,4) of the mask tokens that were decoded: n is 4 with `TrackOptions.mask_tokens`, else 1."""

    logits: Tensor
    iou: Tensor
    score: Tensor
    decisions: list[Decision]
    all_logits: Tensor
    all_ious: Tensor


class VisualPrompt(NamedTuple):
    """Visual prompts on frame 0: `sparse` (O,K,D), `sparse_mask` (O,K) bool, true for real tokens, `dense` (O,N,D).

    Where `is_mask` (O) bool, frame 0 is remembered with the given mask of `masks` (O,I,I) bool. `permanent`: frame 0 is
    never forgotten (SAM 2).
    """

    sparse: Tensor
    sparse_mask: Tensor
    dense: Tensor
    is_mask: Tensor
    masks: Tensor
    permanent: bool


@dataclass(frozen=True, slots=True)
class TrackOptions:
    """`cme_first`, `cme_interval`: first frame and interval of the decisions of the conditional memory encoder. Without
    `memory` every frame is decoded alone."""

    conditional_memory: bool = False
    cme_first: int = 5
    cme_interval: int = 3
    memory: bool = True
    decide_only: bool = False
    """For training: decide at every interval, and never switch."""
    mask_tokens: tuple[int, ...] | None = None
    """For training visual prompts: decode all four masks, and track this one of them on each frame. SAM 2 tracks the
    best of tokens 1 to 3 after a single click, so each of them must be usable."""


def normalize(frames_bthwc: Tensor) -> Tensor:
    """Normalize uint8 (B,T,H,W,3) to float (B,T,3,H,W) with mean and deviation of ImageNet."""
    x = frames_bthwc.permute(0, 1, 4, 2, 3).float() / 255
    return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]


def encode(model: Samwise, pixels: Tensor, tokens: Tensor | None, mask: Tensor | None, prompts: int) -> EncodedClip:
    """Encode clips (B,T,3,I,I) in windows. `tokens` (O,L), or None for visual prompts, which bypass the adapters."""
    parts = [_encode_window(model, part, tokens, mask, prompts) for part in pixels.split(model.config.window, 1)]
    return parts[0] if len(parts) == 1 else EncodedClip(*(torch.cat(x, 1) for x in zip(*parts, strict=True)))


def _encode_window(
    model: Samwise, pixels: Tensor, tokens: Tensor | None, mask: Tensor | None, prompts: int
) -> EncodedClip:
    frames, trunk, neck, decoder = pixels.shape[1], model.sam.trunk, model.sam.neck, model.sam.sam_mask_decoder

    def per_prompt(x: Tensor) -> Tensor:
        """Repeat for each prompt: (B*T,...) -> (O*T,...)."""
        return x if prompts == 1 else x.unflatten(0, (-1, frames)).repeat_interleave(prompts, 0).flatten(0, 1)

    def per_frame(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, frames))

    stride_4 = trunk.run(0, trunk.start(pixels.flatten(0, 1)))
    high_res_0 = per_prompt(decoder.conv_s0(neck.lateral(0)(stride_4))).permute(0, 3, 1, 2)
    stride_8 = trunk.run(1, stride_4)
    shared = per_frame(stride_8.flatten(1, 2))
    if tokens is None:
        stride_16 = trunk.run(2, stride_8)
        maps = [per_prompt(x) for x in (stride_8, stride_16, trunk.run(3, stride_16))]
        # a frame without a prompt: an empty click and its padding
        sparse = model.sam.sam_prompt_encoder.not_a_point_embed.weight.expand(len(maps[0]) // frames, 2, -1)
    else:
        maps, text = model.run_adapters(per_prompt(stride_8), tokens, mask, frames)
        sparse = model.prompt(text)
    high_res_1 = decoder.conv_s1(neck.lateral(1)(maps[0])).permute(0, 3, 1, 2)
    embedding = neck.embedding(maps[1], maps[2]).flatten(1, 2)
    sparse = sparse.unsqueeze(1).expand(-1, frames, -1, -1)
    return EncodedClip(per_frame(embedding), per_frame(high_res_0), per_frame(high_res_1), sparse, shared)


def decode_without_memory(model: Samwise, clip: EncodedClip) -> FrameOutput:
    """Decode all frames of all objects at once without memory: (O*T, ...)."""
    embedding, high_res_0, high_res_1, sparse = (x.flatten(0, 1) for x in clip[:4])
    return model.decode(model.add_no_mem_embed(embedding), sparse, high_res_0, high_res_1, masks=1)


@dataclass(slots=True)
class Tracker:
    """Tracks the objects of one clip. `memory` and `pointers` hold the memory features and object pointers so far.

    `teacher` (O,T,I,I) int8, for training with a correct memory: where an object's row is not -1, the mask in it (0 or
    1) is remembered instead of the predicted one.
    """

    model: Samwise
    clip: EncodedClip
    options: TrackOptions
    prompt: VisualPrompt | None = None
    teacher: Tensor | None = None
    memory: list[Tensor] = field(default_factory=list)
    pointers: list[Tensor] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    last_switch: Tensor | int = 0

    def run(self) -> TrackedClip:
        frames, out = self.clip.embedding.shape[1], []
        for t in range(frames):
            out.append(self.decode(t))
            if t + 1 < frames and self.options.memory:
                self._encode_memory(t, out[-1])
        logits, iou, score = (torch.stack([getattr(f, n) for f in out], 1) for n in ("low_res_logits", "iou", "score"))
        all_logits, all_ious = (torch.stack([getattr(f.decoded, n) for f in out], 1) for n in ("logits", "iou"))
        return TrackedClip(logits, iou, score, self.decisions, all_logits, all_ious)

    def decode(self, t: int) -> FrameOutput:
        sparse, high_res_0, high_res_1 = self.clip.decoder_inputs(t)
        mask = dense = None
        if self.prompt is not None and t == 0:
            sparse, mask, dense = self.prompt[:3]
        tokens, conditioned = self.options.mask_tokens, self._condition(t)
        masks = 4 if tokens else 1
        frame = self.model.decode(conditioned, sparse, high_res_0, high_res_1, mask, dense, masks)
        return _select_token(self.model, frame, tokens[t]) if tokens else frame

    def _encode_memory(self, t: int, frame: FrameOutput) -> None:
        """Encode the memory of a frame, with its predicted, prompted or teacher's mask."""
        logits = _gated_logits(frame)
        if self.options.conditional_memory and t >= self.options.cme_first:
            logits = self._conditional_memory(t, frame, logits)
        if self.prompt is not None and t == 0:
            if self.prompt.permanent:  # SAM 2 binarizes the mask of a prompted frame
                logits = torch.where(logits > 0, 10.0, -10.0)
            logits = self._replace(logits, self.prompt.masks, self.prompt.is_mask)
        if self.teacher is not None:
            logits = self._replace(logits, self.teacher[:, t] > 0.5, self.teacher[:, t, 0, 0] >= 0)
        self.memory.append(self.model.encode_memory(self.clip.embedding[:, t], logits))
        self.pointers.append(frame.pointer)

    def _conditional_memory(self, t: int, frame: FrameOutput, logits: Tensor) -> Tensor:
        """Return the mask logits to encode: those without memory for the objects that switch."""
        options = self.options
        if options.decide_only and (t - options.cme_first) % options.cme_interval:
            return logits
        x = self.model.add_no_mem_embed(self.clip.embedding[:, t])
        again = self.model.decode(x, *self.clip.decoder_inputs(t), None, None, 1)
        decision = self.model.cme_logits(frame.pointer.detach(), again.early_token.detach())
        memoryless = _gated_logits(again)
        self.decisions.append(Decision(t, decision, memoryless))
        if options.decide_only:
            return logits
        # deciding for all objects and using the result for those that are due avoids a synchronisation
        due = t - self.last_switch >= options.cme_interval
        switched = due & (decision[:, 1] > decision[:, 0])
        self.last_switch = torch.where(switched, t, self.last_switch)
        return reweight(self._upsample(logits), self._upsample(memoryless), switched)

    def _replace(self, logits: Tensor, masks: Tensor, where: Tensor) -> Tensor:
        """Upsample logits to image size; replace them by given masks (O,I,I) for the objects `where` (O)."""
        return torch.where(where[:, None, None], torch.where(masks, 10.0, -10.0), self._upsample(logits))

    def _upsample(self, logits: Tensor) -> Tensor:
        return upsample(logits, self.model.config.sam.image_size)

    def _condition(self, t: int) -> Tensor:
        """Attend to the last frames, and to frame 0 if it is permanent."""
        embedding, config = self.clip.embedding[:, t], self.model.config
        if t == 0 or not self.options.memory:
            return self.model.add_no_mem_embed(embedding)
        permanent = self.prompt is not None and self.prompt.permanent
        kept, first = ([0], 1) if permanent else ([], 0)
        recent = range(max(first, t - config.slots), t)
        rows = [CONDITIONING_ROW] * permanent + [t - i - 1 for i in recent]
        memory = torch.stack([self.memory[i] for i in (*kept, *recent)], 1)
        pointers = [self.pointers[i] for i in (*kept, *range(max(first, t - config.pointers), t))]
        index = torch.tensor(rows, device=embedding.device).expand(len(embedding), -1)
        return self.model.attend_memory(embedding, memory, index, torch.stack(pointers, 1))


def _gated_logits(frame: FrameOutput) -> Tensor:
    return torch.where(frame.score[:, None, None] > 0, frame.low_res_logits, NO_OBJECT_LOGIT).detach().float()


def _select_token(model: Samwise, frame: FrameOutput, token: int) -> FrameOutput:
    """Replace the mask and pointer by those of another mask token."""
    decoded = frame.decoded
    pointer = model.sam.obj_ptr_proj(decoded.tokens[:, token])
    pointer = torch.where(decoded.score[:, None] > 0, pointer, model.sam.no_pointer)
    return replace(frame, low_res_logits=decoded.logits[:, token], iou=decoded.iou[:, token], pointer=pointer)
