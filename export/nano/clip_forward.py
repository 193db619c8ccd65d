"""A whole clip through `Samwise`: several sentences or visual prompts per clip, windows, memory, conditional memory.

Shared by training (gradients, several sentences per clip share the trunk's first stages) and evaluation. B counts clips,
K prompts per clip, O = B*K objects (clip-major).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from ..layers.common import upsample
from ..models.samwise import FrameOutput, Samwise
from ..stages.conditional_memory import reweight
from ..stages.mask_decoder import NO_OBJECT_LOGIT

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONDITIONING = 6
"""Row of the temporal embedding for the prompted frame of SAM 2, which is never forgotten; sentences never use it."""


@dataclass(slots=True)
class EncodedClip:
    """Maps of a clip: `embedding` (O,T,N,D), `fine_0` (O,T,D/8,S4,S4), `fine_1` (O,T,D/4,S8,S8), `sparse` (O,T,K,D),
    and before any sentence `shared` (B,T,S8*S8,C)."""

    embedding: Tensor
    fine_0: Tensor
    fine_1: Tensor
    sparse: Tensor
    shared: Tensor


@dataclass(slots=True)
class TrackedClip:
    """What the network said: `logits` (O,T,S4,S4), `iou`, `score` (O,T); `decisions` [(frame, (O,2), memory-less logits)];
    `all_logits` (O,T,4,S4,S4) and `all_ious` (O,T,4) of all mask tokens, where they were asked for."""

    logits: Tensor
    iou: Tensor
    score: Tensor
    decisions: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    all_logits: Tensor | None = None
    all_ious: Tensor | None = None


def normalize(frames_bthwc: Tensor) -> Tensor:
    """uint8 (B,T,H,W,3) -> float (B,T,3,H,W), ImageNet mean and deviation."""
    x = frames_bthwc.permute(0, 1, 4, 2, 3).float() / 255
    return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]


def encode(
    model: Samwise, pixels: Tensor, tokens: Tensor | None, token_mask: Tensor | None, prompts: int
) -> EncodedClip:
    """Encode clips (B,T,3,I,I) in windows. `tokens` (O,L), or None for visual prompts, which pass the adapters by."""
    window = model.config.window
    parts = [_encode_window(model, part, tokens, token_mask, prompts) for part in pixels.split(window, 1)]
    if len(parts) == 1:
        return parts[0]
    return EncodedClip(*(torch.cat([getattr(p, field.name) for p in parts], 1) for field in fields(EncodedClip)))


def _encode_window(
    model: Samwise, pixels: Tensor, tokens: Tensor | None, token_mask: Tensor | None, prompts: int
) -> EncodedClip:
    frames, trunk, neck = pixels.shape[1], model.sam.trunk, model.sam.neck
    decoder = model.sam.sam_mask_decoder

    def each(x: Tensor) -> Tensor:
        """One copy per prompt: (B*T,...) -> (O*T,...)."""
        if prompts == 1:
            return x
        return x.unflatten(0, (-1, frames)).repeat_interleave(prompts, 0).flatten(0, 1)

    finest = trunk.run(0, trunk.start(pixels.flatten(0, 1)))
    fine_0 = each(decoder.conv_s0(neck.lateral(0)(finest)))
    x = trunk.run(1, finest)
    shared = x.flatten(1, 2).unflatten(0, (-1, frames))
    if tokens is None:
        fine, mid = x, trunk.run(2, x)
        maps = [each(y) for y in (fine, mid, trunk.run(3, mid))]
        sparse = nothing(model, len(maps[0]) // frames).unsqueeze(1).expand(-1, frames, -1, -1)
    else:
        x, maps, text, done = each(x), [], model.tower.embed(tokens, token_mask), 0
        for stage, (adapter, last) in enumerate(zip(model.cmt_adapters, model.config.text_stages), 1):
            x = trunk.run(stage, x) if stage > 1 else x
            text = model.tower.run(done, last, text, token_mask)
            vision_add, text_add = adapter(x.unflatten(0, (-1, frames)), text, token_mask)
            x, text, done = x + vision_add.flatten(0, 1), text + text_add, last
            maps.append(x)
        sparse = model.prompt(text).unsqueeze(1).expand(-1, frames, -1, -1)
    fine_1 = decoder.conv_s1(neck.lateral(1)(maps[0]))
    embedding = neck.embedding(maps[1], maps[2]).flatten(1, 2)
    return EncodedClip(
        *(y.unflatten(0, (-1, frames)) for y in (embedding, fine_0.permute(0, 3, 1, 2), fine_1.permute(0, 3, 1, 2))),
        sparse,
        shared,
    )


def nothing(model: Samwise, objects: int) -> Tensor:
    """The tokens of a frame without a prompt: an empty click and its padding, (O,2,D)."""
    return model.sam.sam_prompt_encoder.not_a_point_embed.weight.expand(objects, 2, -1)


def decode_without_memory(model: Samwise, clip: EncodedClip) -> FrameOutput:
    """All frames of all objects decoded at once without memory: (O*T, ...)."""
    x = model.without_memory(clip.embedding.flatten(0, 1))
    return model.decode(x, clip.sparse.flatten(0, 1), clip.fine_0.flatten(0, 1), clip.fine_1.flatten(0, 1), masks=1)


@dataclass(slots=True)
class VisualPrompt:
    """A visual prompt on frame 0: `sparse` (O,K,D), `mask` (O,K) bool, `dense` (O,N,D). With `given` (O) bool and `masks`
    (O,I,I) bool the memory of frame 0 is made from the given mask; `permanent`: frame 0 is never forgotten (SAM 2)."""

    sparse: Tensor
    mask: Tensor
    dense: Tensor
    given: Tensor
    masks: Tensor
    permanent: bool


@dataclass(frozen=True, slots=True)
class TrackOptions:
    """How a clip is followed. `first`, `every`: when the conditional memory encoder is asked; `memory` off forgets all."""

    conditional: bool = False
    first: int = 5
    every: int = 3
    memory: bool = True
    decide_all: bool = False
    """Ask on all due frames and never switch: for training."""
    tokens: tuple[int, ...] | None = None
    """For training visual prompts: decode all four masks, and follow this one of them on each frame. SAM 2 follows the best
    of tokens 1 to 3 after a single click, so any of them must do."""


def track(
    model: Samwise,
    clip: EncodedClip,
    policy: TrackOptions,
    start: VisualPrompt | None = None,
    teach: Tensor | None = None,
) -> TrackedClip:
    """Follow the objects through the clip.

    `teach` (O,T,I,I) int8, for training with a faithful memory: where an object's row is not -1, the mask in it (0 or 1)
    is remembered instead of the network's own.
    """
    objects, frames = clip.embedding.shape[:2]
    slots: list[Tensor] = []
    pointers: list[Tensor] = []
    out, decisions, last = [], [], torch.zeros(objects, dtype=torch.long, device=clip.embedding.device)
    for t in range(frames):
        conditioned = (
            _condition(model, clip.embedding[:, t], slots, pointers, t, start)
            if policy.memory
            else model.without_memory(clip.embedding[:, t])
        )
        prompt, mask, dense = clip.sparse[:, t], None, None
        if start is not None and t == 0:
            prompt, mask, dense = start.sparse, start.mask, start.dense
        frame = model.decode(
            conditioned, prompt, clip.fine_0[:, t], clip.fine_1[:, t], mask, dense, masks=4 if policy.tokens else 1
        )
        if policy.tokens:
            frame = _follow(model, frame, policy.tokens[t])
        out.append(frame)
        if t + 1 == frames or not policy.memory:
            continue
        logits = torch.where(frame.score[:, None, None] > 0, frame.low_res_logits, NO_OBJECT_LOGIT).detach().float()
        remembered = logits
        if policy.conditional and t >= policy.first:
            if policy.decide_all:
                asked = (t - policy.first) % policy.every == 0
            else:  # each object has its own clock; asking all and using some needs no wait for the device
                asked, due = True, t - last >= policy.every
            if asked:
                again = model.decode(
                    model.without_memory(clip.embedding[:, t]),
                    clip.sparse[:, t],
                    clip.fine_0[:, t],
                    clip.fine_1[:, t],
                    masks=1,
                )
                decision = model.decide(frame.pointer.detach(), again.early_token.detach())
                other = (
                    torch.where(again.score[:, None, None] > 0, again.low_res_logits, NO_OBJECT_LOGIT).detach().float()
                )
                decisions.append((t, decision, other))
            if not policy.decide_all:
                switched = due & (decision[:, 1] > decision[:, 0])
                last = torch.where(switched, t, last)
                side = model.config.sam.image_size
                remembered = reweight(upsample(logits, side), upsample(other, side), switched)
        if start is not None and t == 0:
            if start.permanent:  # SAM 2 remembers what a prompt gave as black and white
                remembered = torch.where(remembered > 0, 10.0, -10.0)
            remembered = _given(remembered, start.masks, start.given, model.config.sam.image_size)
        if teach is not None:
            known = teach[:, t, 0, 0] >= 0
            remembered = _given(remembered, teach[:, t] > 0.5, known, model.config.sam.image_size)
        slots.append(model.remember(clip.embedding[:, t], remembered))
        pointers.append(frame.pointer)
    result = TrackedClip(
        torch.stack([f.low_res_logits for f in out], 1),
        torch.stack([f.iou for f in out], 1),
        torch.stack([f.score for f in out], 1),
        decisions,
    )
    if policy.tokens:
        result.all_logits = torch.stack([f.decoded.logits for f in out], 1)
        result.all_ious = torch.stack([f.decoded.iou for f in out], 1)
    return result


def _follow(model: Samwise, frame: FrameOutput, token: int) -> FrameOutput:
    """The same decode, with the mask and pointer of another mask token."""
    decoded = frame.decoded
    pointer = model.sam.obj_ptr_proj(decoded.tokens[:, token])
    logits, pointer = decoded.logits[:, token], torch.where(decoded.score[:, None] > 0, pointer, model.sam.no_pointer)
    return replace(frame, low_res_logits=logits, iou=decoded.iou[:, token], pointer=pointer)


def _given(logits: Tensor, masks: Tensor, use: Tensor, side: int) -> Tensor:
    return torch.where(use[:, None, None], torch.where(masks, 10.0, -10.0), upsample(logits, side))


def _condition(
    model: Samwise, embedding: Tensor, slots: list[Tensor], pointers: list[Tensor], t: int, start: VisualPrompt | None
) -> Tensor:
    if t == 0:
        return model.without_memory(embedding)
    limit, keep = model.config.slots, model.config.pointers
    if start is not None and start.permanent:
        recent = list(range(max(1, t - limit), t))
        chosen, rows = [0, *recent], [CONDITIONING, *(t - i - 1 for i in recent)]
        tokens = [0, *range(max(1, t - keep), t)]
    else:
        chosen = list(range(max(0, t - limit), t))
        rows, tokens = [t - i - 1 for i in chosen], list(range(max(0, t - keep), t))
    ages = torch.tensor(rows, device=embedding.device).expand(len(embedding), -1)
    return model.attend_memory(
        embedding, torch.stack([slots[i] for i in chosen], 1), ages, torch.stack([pointers[i] for i in tokens], 1)
    )
