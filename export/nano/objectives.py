"""What a batch teaches: losses of masks, scores and decisions, and of the heads that exist for training only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..models.samwise import Samwise
from . import losses, prompts
from .auxiliary_heads import FeatureHook
from .clip_forward import TrackOptions, decode_without_memory, encode, normalize, track
from .loader import Batch


class Objectives:
    """`fraction` is the spent part of the budget: less is told in advance as it grows. Draws come from `random` (on the
    device) and `draw`."""

    def __init__(
        self, model: Samwise, heads: nn.ModuleDict, random: torch.Generator, draw: np.random.Generator
    ) -> None:
        self.model, self.heads, self.random, self.draw = model, heads, random, draw
        self.overheard = FeatureHook(model)
        self.device = random.device
        self.fraction = 0.0

    def of(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Part of the network -> name -> loss or figure; `losses.total` knows what counts how much."""
        instance_map = torch.from_numpy(batch.instance_map).to(self.device, non_blocking=True)
        frames = torch.from_numpy(batch.frames).to(self.device, non_blocking=True)
        truth = losses.ground_truth(instance_map, torch.from_numpy(batch.targets).to(self.device))
        return (self._visual if batch.stream.visual else self._sentences)(batch, frames, instance_map, truth)

    def _sentences(
        self, batch: Batch, frames: Tensor, instance_map: Tensor, truth: Tensor
    ) -> dict[str, dict[str, Tensor]]:
        tokens, mask = (torch.from_numpy(x).to(self.device) for x in (batch.tokens, batch.token_mask))
        clip = encode(self.model, normalize(frames), tokens, mask, batch.stream.sentences)
        shape = clip.embedding.shape[:2]
        alone = decode_without_memory(self.model, clip)
        parts = {
            "alone": losses.frame_losses(
                alone.low_res_logits.unflatten(0, shape),
                alone.iou.unflatten(0, shape),
                alone.score.unflatten(0, shape),
                truth,
            ),
            "looks": self._look(batch, clip.shared, instance_map, "shared"),
            "fused": self._look(batch, clip.embedding[:: batch.stream.sentences], instance_map, "fused"),
            "told": self.heads["told"](clip.embedding.flatten(0, 1), truth.flatten(0, 1)),
        }
        said, heard = self.overheard.take()
        if batch.stream.frames > 1:
            follow = self.overheard.follow(heard, instance_map, batch.stream.sentences)
            parts["speed"] = self._speed(batch, said, instance_map) | {"follow": follow}
        if (
            batch.stream.frames == 1
            or not batch.stream.memory
            or self.draw.random() < 0.3 * (1 - min(1.0, 2 * self.fraction))
        ):
            return parts
        # a switch that the decision asks for changes what is remembered in half of the later batches, as it will in use
        acts = self.fraction > 0.6 and self.draw.random() < 0.5
        tracked = track(self.model, clip, TrackOptions(conditional=True, decide_all=not acts), teach=self._teach(truth))
        parts["tracked"] = losses.frame_losses(tracked.logits, tracked.iou, tracked.score, truth)
        decision = losses.decision_loss(tracked, truth)
        if decision is not None:
            parts["tracked"]["cme"] = decision
        return parts

    def _teach(self, truth: Tensor, more: float = 0.0) -> Tensor:
        """Ground truth to remember instead of the own mask, for a part of the objects that shrinks with time; -1 elsewhere."""
        part = (0.4 + more) * (1 - self.fraction) + 0.1 + more / 2
        chosen = torch.rand(len(truth), device=self.device, generator=self.random) < part
        return torch.where(chosen[:, None, None, None], truth.to(torch.int8), -1)

    def _visual(
        self, batch: Batch, frames: Tensor, instance_map: Tensor, truth: Tensor
    ) -> dict[str, dict[str, Tensor]]:
        if not batch.stream.sentences:  # pictures to recognise and nothing else, each also mirrored
            both, instance_map = torch.cat((frames, frames.flip(3))), torch.cat((instance_map, instance_map.flip(3)))
            clip = encode(self.model, normalize(both), None, None, 1)
            return {
                "looks": self._look(batch, clip.shared, instance_map, "shared"),
                "plain": self._look(batch, clip.embedding, instance_map, "plain"),
            }
        clip = encode(self.model, normalize(frames), None, None, batch.stream.sentences)
        modes = torch.randint(0, len(prompts.MODES), (len(truth),), device=self.device, generator=self.random)
        begin = prompts.start(
            self.model,
            truth[:, 0],
            modes,
            permanent=bool(self.draw.random() < 0.6),
            generator=self.random,
            scaled=bool(self.draw.random() < 0.5),
        )
        tokens = tuple(self.draw.choice(4, batch.stream.frames, p=(0.4, 0.2, 0.2, 0.2)).tolist())
        tracked = track(self.model, clip, TrackOptions(tokens=tokens), begin, self._teach(truth, 0.4))
        every = [
            losses.frame_losses(tracked.all_logits[:, :, i], tracked.all_ious[:, :, i], tracked.score, truth)
            for i in range(4)
        ]
        return {
            "tracked": {name: sum(e[name] for e in every) / 4 for name in every[0]},
            "looks": self._look(batch, clip.shared, instance_map, "shared"),
            "plain": self._look(batch, clip.embedding[:: batch.stream.sentences], instance_map, "plain"),
        }

    def _look(self, batch: Batch, maps: Tensor, instance_map: Tensor, head: str) -> dict[str, Tensor]:
        """What all objects are, told from maps (B,T,N,C) of all frames."""
        looks = torch.from_numpy(batch.looks).to(self.device).repeat_interleave(maps.shape[1], 0)
        looks = looks.repeat(maps.shape[0] // len(batch.looks), 1, 1)
        return self.heads[head](maps.flatten(0, 1), instance_map.flatten(0, 1), looks)

    def _speed(self, batch: Batch, said: Tensor, instance_map: Tensor) -> dict[str, Tensor]:
        """How all objects move, told from the attention over frames (B*K,T,N,C)."""
        every = batch.stream.sentences
        speeds = torch.from_numpy(batch.speeds).to(self.device).repeat_interleave(every, 0).flatten(0, 1)
        return self.heads["speed"](said.flatten(0, 1), instance_map.repeat_interleave(every, 0).flatten(0, 1), speeds)
