"""Losses of a training batch: masks, scores, decisions of the conditional memory encoder, and auxiliary heads.

O objects, T frames. Ground truth `truth` (O,T,I,I) bool; an object is present on a frame if any pixel of it is.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.samwise import Samwise
from . import prompts
from .auxiliary_heads import FeatureHook
from .clip_forward import EncodedClip, TrackedClip, Tracker, TrackOptions, decode_without_memory, encode, normalize
from .loader import Batch

_MASKS = {"bce": 6.0, "dice": 2.0, "score": 1.0, "iou": 0.5, "cme": 0.5}
_HEADS = {"noun": 0.5, "colour": 0.25, "motion": 0.5, "velocity": 1.0, "attention": 0.3, "text_match": 1.0}
WEIGHTS = _MASKS | _HEADS
ABSENT_WEIGHT = 0.1
"""Weight of the mask loss where the object is absent: the presence score empties the mask there."""

Losses = dict[str, Tensor]
"""Name -> loss, or metric for the log, whose name begins with '_'."""


def total(losses: Losses) -> Tensor:
    """Return the weighted sum of the losses."""
    return sum((WEIGHTS[name] * x for name, x in losses.items() if not name.startswith("_")), torch.zeros(()))


class Objectives:
    """Computes losses. `progress` is the elapsed part of the training budget: teacher forcing decreases as it grows.

    Random numbers come from `generator` (on the device) and `rng`.
    """

    def __init__(
        self, model: Samwise, heads: nn.ModuleDict, generator: torch.Generator, rng: np.random.Generator
    ) -> None:
        self.model, self.heads, self.generator, self.rng = model, heads, generator, rng
        self.hook, self.device, self.progress = FeatureHook(model), generator.device, 0.0

    def losses(self, batch: Batch) -> dict[str, Losses]:
        """Return the losses of each part of the network."""
        instances, frames, targets = map(self._upload, (batch.instance_map, batch.frames, batch.targets))
        truth = (instances[:, None] == targets[:, :, None, None, None]).flatten(0, 1)
        if not batch.spec.visual:
            return self._text_losses(batch, frames, instances, truth)
        if batch.spec.sentences:
            return self._visual_losses(batch, frames, instances, truth)
        return self._recognition_losses(batch, frames, instances)

    def _upload(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _text_losses(self, batch: Batch, frames: Tensor, instances: Tensor, truth: Tensor) -> dict[str, Losses]:
        spec = batch.spec
        tokens, mask = map(self._upload, (batch.tokens, batch.token_mask))
        clip = encode(self.model, normalize(frames), tokens, mask, spec.sentences)
        alone = decode_without_memory(self.model, clip)
        outputs = (x.unflatten(0, clip.embedding.shape[:2]) for x in (alone.low_res_logits, alone.iou, alone.score))
        logits, iou, score = outputs
        parts = {
            "single_frame": frame_losses(logits, iou, score, truth),
            "shared": self._appearance_losses(batch, clip.shared, instances, "shared"),
            "fused": self._appearance_losses(batch, clip.embedding[:: spec.sentences], instances, "fused"),
            "text_match": self.heads["text_match"](clip.embedding.flatten(0, 1), truth.flatten(0, 1)),
        }
        inputs, attended = self.hook.pop()
        if spec.frames == 1:
            return parts
        attention = self.hook.attention_loss(inputs, instances, spec.sentences)
        parts["motion"] = self._motion_losses(batch, attended, instances) | {"attention": attention}
        if spec.memory and self.rng.random() >= 0.3 * (1 - min(1.0, 2 * self.progress)):
            # in half of the late batches a decision to switch changes the memory, as it does in inference
            switch = self.progress > 0.6 and self.rng.random() < 0.5
            options = TrackOptions(conditional_memory=True, decide_only=not switch)
            tracked = Tracker(self.model, clip, options, teacher=self._teacher_masks(truth)).run()
            parts["tracked"] = frame_losses(tracked.logits, tracked.iou, tracked.score, truth)
            if tracked.decisions:
                parts["tracked"]["cme"] = decision_loss(tracked, truth)
        return parts

    def _recognition_losses(self, batch: Batch, frames: Tensor, instances: Tensor) -> dict[str, Losses]:
        """Classify all objects without a prompt, on the frames and their mirror images."""
        frames, instances = (torch.cat((x, x.flip(3))) for x in (frames, instances))
        return self._unprompted_losses(batch, encode(self.model, normalize(frames), None, None, 1), instances)

    def _unprompted_losses(self, batch: Batch, clip: EncodedClip, instances: Tensor) -> dict[str, Losses]:
        maps = {"shared": clip.shared, "no_text": clip.embedding[:: max(1, batch.spec.sentences)]}
        return {head: self._appearance_losses(batch, x, instances, head) for head, x in maps.items()}

    def _visual_losses(self, batch: Batch, frames: Tensor, instances: Tensor, truth: Tensor) -> dict[str, Losses]:
        spec = batch.spec
        clip = encode(self.model, normalize(frames), None, None, spec.sentences)
        modes = torch.randint(len(prompts.MODES), (len(truth),), device=self.device, generator=self.generator)
        permanent, scaled = bool(self.rng.random() < 0.6), bool(self.rng.random() < 0.5)
        prompt = prompts.encode_prompts(self.model, truth[:, 0], modes, permanent, self.generator, scaled=scaled)
        tokens = tuple(self.rng.choice(4, spec.frames, p=(0.4, 0.2, 0.2, 0.2)).tolist())
        teacher = self._teacher_masks(truth, 0.4)
        tracked = Tracker(self.model, clip, TrackOptions(mask_tokens=tokens), prompt, teacher).run()
        logits, ious, score = tracked.all_logits, tracked.all_ious, tracked.score
        by_token = [frame_losses(logits[:, :, i], ious[:, :, i], score, truth) for i in range(4)]
        mean = {name: sum((x[name] for x in by_token), torch.zeros(())) / 4 for name in by_token[0]}
        return {"tracked": mean, **self._unprompted_losses(batch, clip, instances)}

    def _teacher_masks(self, truth: Tensor, extra: float = 0.0) -> Tensor:
        """Return the ground truth for a random part of the objects that shrinks with progress; -1 for the others."""
        part = (0.4 + extra) * (1 - self.progress) + 0.1 + extra / 2
        chosen = torch.rand(len(truth), device=self.device, generator=self.generator) < part
        return torch.where(chosen[:, None, None, None], truth.to(torch.int8), -1)

    def _appearance_losses(self, batch: Batch, maps: Tensor, instances: Tensor, head: str) -> Losses:
        """Classify all objects, from maps (B,T,N,C) of all frames; B may repeat the batch."""
        labels = self._upload(batch.appearance).repeat_interleave(maps.shape[1], 0)
        labels = labels.repeat(maps.shape[0] // len(batch.appearance), 1, 1)
        return self.heads[head](maps.flatten(0, 1), instances.flatten(0, 1), labels)

    def _motion_losses(self, batch: Batch, maps: Tensor, instances: Tensor) -> Losses:
        """Predict the motion of all objects, from the output of the attention over frames (B*K,T,N,C)."""
        labels = (x.repeat_interleave(batch.spec.sentences, 0) for x in (instances, self._upload(batch.motion)))
        return self.heads["motion"](*(x.flatten(0, 1) for x in (maps, *labels)))


def mask_losses(logits: Tensor, truth: Tensor) -> Losses:
    """Compute losses of mask logits (O,T,s,s) of any size. Dice counts frames with the object only."""
    # half the resolution is enough for boundaries from bilinear interpolation, at a quarter of the work
    target = F.avg_pool2d(truth.flatten(0, 1)[:, None].float(), 2)
    logits = logits.flatten(0, 1)[:, None].float()
    logits = F.interpolate(logits, target.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
    target = target.flatten(1)
    present = (target.amax(1) > 0).float()
    weight = present + ABSENT_WEIGHT * (1 - present)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    # focal: a pixel that is right by a wide margin counts less
    hard = (logits.detach().sigmoid() - target).abs()
    bce = (bce * (0.25 + 0.75 * hard)).mean(1)
    probability = logits.sigmoid()
    dice = 1 - (2 * (probability * target).sum(1) + 1) / (probability.sum(1) + target.sum(1) + 1)
    return {"bce": (bce * weight).sum() / weight.sum().clamp(min=1), "dice": _mean(dice, present)}


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1)


def frame_losses(logits: Tensor, iou: Tensor, score: Tensor, truth: Tensor) -> Losses:
    """Compute losses of mask logits (O,T,s,s), predicted IoU (O,T) in 0..1 and presence logit (O,T); J for the log."""
    present = truth.flatten(2).any(2).float()
    with torch.no_grad():
        large = F.interpolate(logits.detach().float(), truth.shape[-2:], mode="bilinear", align_corners=False)
        either, both = ((large > 0) | truth).flatten(2).sum(2), ((large > 0) & truth).flatten(2).sum(2)
        real = both / either.clamp(min=1)
    losses = mask_losses(logits, truth) | {"score": F.binary_cross_entropy_with_logits(score.float(), present)}
    return losses | {"iou": _mean((iou.float() - real).abs(), present), "_j": _mean(real, present)}


def decision_labels(with_memory: Tensor, without: Tensor, truth: Tensor) -> Tensor:
    """Label decisions of the conditional memory encoder: 1 switch, 0 stay, -1 ignored. Masks (O,s,s) bool.

    The reference labels 1 wherever the two masks hardly overlap. Here the truth decides as well: where only the mask
    with memory is right, the label is 0, because an action predicted earlier is remembered and no longer visible.
    """
    a, b, gt = with_memory.flatten(1), without.flatten(1), truth.flatten(1)
    apart = (a & b).sum(1) < 0.1 * torch.minimum(a.sum(1), b.sum(1)).clamp(min=1)
    recall_a, recall_b = ((x & gt).sum(1) / gt.sum(1).clamp(min=1) for x in (a, b))
    label = torch.where(apart & (recall_b > recall_a + 0.2), 1, 0)
    return torch.where((b.sum(1) == 0) | (gt.sum(1) == 0), -1, label)


def clip_decision_labels(tracked: TrackedClip, truth: Tensor) -> Tensor:
    """Return `decision_labels` of all decisions in a clip, at least one, in their order: (decisions*O)."""
    labels = []
    for t, _, memoryless_logits in tracked.decisions:
        small = F.interpolate(truth[:, t, None].float(), tracked.logits.shape[-2:], mode="area")[:, 0] > 0.5
        with_memory = (tracked.logits[:, t] > 0) & (tracked.score[:, t, None, None] > 0)
        labels.append(decision_labels(with_memory, memoryless_logits > 0, small))
    return torch.cat(labels)


def decision_loss(tracked: TrackedClip, truth: Tensor) -> Tensor:
    """Compute the cross-entropy of all decisions, at least one, with the reference's double weight for switches."""
    label = clip_decision_labels(tracked, truth)
    logits = torch.cat([decision.logits.float() for decision in tracked.decisions])
    loss = F.cross_entropy(logits, label.clamp(min=0), reduction="none")
    return _mean(loss, torch.where(label == 1, 2.0, 1.0) * (label >= 0))
