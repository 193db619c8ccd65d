"""Losses of a training batch: masks, scores, decisions and auxiliary heads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..models.samwise import Samwise
from . import losses, prompts
from .auxiliary_heads import FeatureHook
from .clip_forward import Tracker, TrackOptions, decode_without_memory, encode, normalize
from .loader import Batch

Losses = dict[str, dict[str, Tensor]]
"""Part of the network -> name -> loss or logged metric; `losses.total` holds their weights."""


class Objectives:
    """Computes losses. `progress` is the elapsed part of the training budget: teacher forcing decreases as it grows.

    Random numbers come from `generator` (on the device) and `rng`.
    """

    def __init__(
        self, model: Samwise, heads: nn.ModuleDict, generator: torch.Generator, rng: np.random.Generator
    ) -> None:
        self.model, self.heads, self.generator, self.rng = model, heads, generator, rng
        self.hook = FeatureHook(model)
        self.device = generator.device
        self.progress = 0.0

    def losses(self, batch: Batch) -> Losses:
        instances = torch.from_numpy(batch.instance_map).to(self.device, non_blocking=True)
        frames = torch.from_numpy(batch.frames).to(self.device, non_blocking=True)
        truth = losses.ground_truth(instances, torch.from_numpy(batch.targets).to(self.device))
        if not batch.spec.visual:
            return self._text_losses(batch, frames, instances, truth)
        if batch.spec.sentences:
            return self._visual_losses(batch, frames, instances, truth)
        return self._recognition_losses(batch, frames, instances)

    def _text_losses(self, batch: Batch, frames: Tensor, instances: Tensor, truth: Tensor) -> Losses:
        spec = batch.spec
        tokens, mask = (torch.from_numpy(x).to(self.device) for x in (batch.tokens, batch.token_mask))
        clip = encode(self.model, normalize(frames), tokens, mask, spec.sentences)
        shape = clip.embedding.shape[:2]
        alone = decode_without_memory(self.model, clip)
        logits, iou, score = (x.unflatten(0, shape) for x in (alone.low_res_logits, alone.iou, alone.score))
        parts = {
            "single_frame": losses.frame_losses(logits, iou, score, truth),
            "shared": self._appearance_losses(batch, clip.shared, instances, "shared"),
            "fused": self._appearance_losses(batch, clip.embedding[:: spec.sentences], instances, "fused"),
            "text_match": self.heads["text_match"](clip.embedding.flatten(0, 1), truth.flatten(0, 1)),
        }
        inputs, outputs = self.hook.pop()
        if spec.frames == 1:
            return parts
        attention = self.hook.attention_loss(inputs, instances, spec.sentences)
        parts["motion"] = self._motion_losses(batch, outputs, instances) | {"attention": attention}
        if spec.memory and self.rng.random() >= 0.3 * (1 - min(1.0, 2 * self.progress)):
            # in half of the late batches a decision to switch changes the memory, as it does in inference
            switch = self.progress > 0.6 and self.rng.random() < 0.5
            options = TrackOptions(conditional_memory=True, decide_only=not switch)
            tracked = Tracker(self.model, clip, options, teacher=self._teacher_masks(truth)).run()
            parts["tracked"] = losses.frame_losses(tracked.logits, tracked.iou, tracked.score, truth)
            decision = losses.decision_loss(tracked, truth)
            if decision is not None:
                parts["tracked"]["cme"] = decision
        return parts

    def _recognition_losses(self, batch: Batch, frames: Tensor, instances: Tensor) -> Losses:
        """Classify all objects without a prompt, on the frames and their mirror images."""
        frames, instances = (torch.cat((x, x.flip(3))) for x in (frames, instances))
        clip = encode(self.model, normalize(frames), None, None, 1)
        return {
            "shared": self._appearance_losses(batch, clip.shared, instances, "shared"),
            "no_text": self._appearance_losses(batch, clip.embedding, instances, "no_text"),
        }

    def _visual_losses(self, batch: Batch, frames: Tensor, instances: Tensor, truth: Tensor) -> Losses:
        spec, device = batch.spec, self.device
        clip = encode(self.model, normalize(frames), None, None, spec.sentences)
        modes = torch.randint(0, len(prompts.MODES), (len(truth),), device=device, generator=self.generator)
        permanent, scaled = bool(self.rng.random() < 0.6), bool(self.rng.random() < 0.5)
        prompt = prompts.encode_prompts(
            self.model, truth[:, 0], modes, permanent, generator=self.generator, scaled=scaled
        )
        tokens = tuple(self.rng.choice(4, spec.frames, p=(0.4, 0.2, 0.2, 0.2)).tolist())
        options = TrackOptions(mask_tokens=tokens)
        tracked = Tracker(self.model, clip, options, prompt, self._teacher_masks(truth, 0.4)).run()
        by_token = [
            losses.frame_losses(tracked.all_logits[:, :, i], tracked.all_ious[:, :, i], tracked.score, truth)
            for i in range(4)
        ]
        return {
            "tracked": {name: sum(e[name] for e in by_token) / 4 for name in by_token[0]},
            "shared": self._appearance_losses(batch, clip.shared, instances, "shared"),
            "no_text": self._appearance_losses(batch, clip.embedding[:: spec.sentences], instances, "no_text"),
        }

    def _teacher_masks(self, truth: Tensor, extra: float = 0.0) -> Tensor:
        """Return the ground truth for a random part of the objects that shrinks with progress; -1 for the others."""
        part = (0.4 + extra) * (1 - self.progress) + 0.1 + extra / 2
        chosen = torch.rand(len(truth), device=self.device, generator=self.generator) < part
        return torch.where(chosen[:, None, None, None], truth.to(torch.int8), -1)

    def _appearance_losses(self, batch: Batch, maps: Tensor, instances: Tensor, head: str) -> dict[str, Tensor]:
        """Classify all objects, from maps (B,T,N,C) of all frames; B may repeat the batch."""
        labels = torch.from_numpy(batch.appearance).to(self.device).repeat_interleave(maps.shape[1], 0)
        labels = labels.repeat(maps.shape[0] // len(batch.appearance), 1, 1)
        return self.heads[head](maps.flatten(0, 1), instances.flatten(0, 1), labels)

    def _motion_losses(self, batch: Batch, outputs: Tensor, instances: Tensor) -> dict[str, Tensor]:
        """Predict the motion of all objects, from the output of the attention over frames (B*K,T,N,C)."""
        prompts = batch.spec.sentences
        labels = torch.from_numpy(batch.motion).to(self.device).repeat_interleave(prompts, 0).flatten(0, 1)
        return self.heads["motion"](
            outputs.flatten(0, 1), instances.repeat_interleave(prompts, 0).flatten(0, 1), labels
        )
