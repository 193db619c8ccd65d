"""Auxiliary loss heads (training only).

A sentence supervises one object of a clip. These heads supervise all objects at once, and directly reach layers that
the gradient of the masks reaches only through the decoder. None of them is exported.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import PackedAttention
from ..models.samwise import Samwise, SamwiseConfig
from ..stages.cross_modal_adapter import Adapter, from_patches, to_patches
from .loader import APPEARANCE_CLASSES, TYPICAL_MOTION

BACKGROUND_WEIGHT = 0.2
"""Weight of a cell without an object."""
FAST_WEIGHT = 3.0
"""Weight of a motion that a viewer would notice: most are close to zero."""


class AppearanceHead(nn.Module):
    """Classifies noun, colour and motion of the object in each cell of a map, without a sentence."""

    def __init__(self, width: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names, self.sizes = names, [APPEARANCE_CLASSES[n] for n in names]
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, sum(self.sizes))

    def forward(self, map_bnd: Tensor, instances_bii: Tensor, labels_bo3: Tensor) -> dict[str, Tensor]:
        """Compute losses and accuracies of maps (B,N,D), given instance maps (B,I,I) uint8 and appearance labels."""
        cells = cell_instances(instances_bii, map_bnd.shape[1])
        labels = labels_bo3.gather(1, cells[..., None].expand(-1, -1, 3)).unbind(2)
        weight = torch.where(cells > 0, 1.0, BACKGROUND_WEIGHT).flatten()
        parts = self.classifier(self.norm(map_bnd)).float().flatten(0, 1).split(self.sizes, 1)
        out = {}
        for name, logits in zip(self.names, parts, strict=True):
            label = labels[tuple(APPEARANCE_CLASSES).index(name)].flatten()
            loss = F.cross_entropy(logits, label, reduction="none")
            counted = label > (name == "motion")  # most objects are still, and count less here
            w = weight if name != "motion" else weight * torch.where(counted, 1.0, 0.3)
            out[name] = (loss * w).sum() / w.sum()
            out[f"_{name}_accuracy"] = ((logits.argmax(1) == label) & counted).sum() / counted.sum().clamp(min=1)
        return out


class MotionHead(nn.Module):
    """Predicts how fast the object in each cell moves, rotates and grows, from the output of hierarchical selective
    attention, the only place where one frame sees another within a window."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.velocity = nn.Linear(width, len(TYPICAL_MOTION))

    def forward(self, map_bnd: Tensor, instances_bii: Tensor, motion_bom: Tensor) -> dict[str, Tensor]:
        """Compute loss and accuracy of maps (B,N,D), given instance maps (B,I,I) uint8 and motion labels (B,O,4)."""
        cells = cell_instances(instances_bii, map_bnd.shape[1])
        target = motion_bom.gather(1, cells[..., None].expand(-1, -1, motion_bom.shape[2]))
        predicted = self.velocity(map_bnd).float()
        weight = torch.where(cells > 0, 1.0, BACKGROUND_WEIGHT)
        fast = (target.abs() > 0.5) & (cells > 0)[..., None]
        loss = F.smooth_l1_loss(predicted, target, reduction="none", beta=0.5) * torch.where(fast, FAST_WEIGHT, 1.0)
        accuracy = ((predicted - target).abs() < 0.5)[fast].float().mean() if fast.any() else loss.new_zeros(())
        return {"velocity": (loss.sum(2) * weight).sum() / weight.sum(), "_velocity_accuracy": accuracy}


class TextMatchHead(nn.Module):
    """Predicts the part of each cell that the object of a sentence covers, from the map fused with the sentence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.coverage = nn.Linear(width, 1)

    def forward(self, map_bnd: Tensor, truth_bii: Tensor) -> dict[str, Tensor]:
        """Compute the loss of maps (B,N,D), given ground truth (B,I,I) bool."""
        side = int(map_bnd.shape[1] ** 0.5)
        target = F.avg_pool2d(truth_bii[:, None].float(), truth_bii.shape[1] // side).flatten(1)
        logits = self.coverage(self.norm(map_bnd)).float().squeeze(2)
        weight = torch.where(target > 0.1, 1.0, BACKGROUND_WEIGHT)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return {"text_match": (loss * weight).sum() / weight.sum()}


def cell_instances(instances_bii: Tensor, count: int) -> Tensor:
    """Return the instance id in the middle of each of `count` cells: (B,I,I) -> int64 (B,count)."""
    step = instances_bii.shape[1] // int(count**0.5)
    return instances_bii[:, step // 2 :: step, step // 2 :: step].flatten(1).long()


def build_heads(config: SamwiseConfig) -> nn.ModuleDict:
    """Build heads on the map that all sentences share, on the final map without a sentence, on the one fused with a
    sentence (`fused`, `text_match`), and on the attention over frames."""
    width = config.sam.width
    heads = nn.ModuleDict()
    heads["shared"] = AppearanceHead(config.sam.hiera.widths[1], ("noun", "colour"))
    heads["no_text"] = AppearanceHead(width, ("noun", "colour"))
    heads["fused"] = AppearanceHead(width, ("noun", "colour", "motion"))
    heads["text_match"] = TextMatchHead(width)
    heads["motion"] = MotionHead(config.adapter.width)
    return heads


class FeatureHook:
    """Records inputs and outputs of the attention over frames at stride 16, window by window, until `pop`."""

    def __init__(self, model: Samwise) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []
        adapter = cast(Adapter, model.cmt_adapters[1])
        self.side, self.patch, self.attention = model.config.sam.side, adapter.patch, adapter.hsa.self_attn
        adapter.hsa.register_forward_hook(self._record)

    def _record(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if module.training:
            self.calls.append((args[0], output))

    def pop(self) -> tuple[list[Tensor], Tensor]:
        """Return inputs per window (O*patches,T*side*side,C) and output (O,T,N,C) of the clip that was encoded last."""
        maps = [from_patches(x, self.patch, self.side, self.side).flatten(2, 3) for _, x in self.calls]
        inputs, self.calls = [x for x, _ in self.calls], []
        return inputs, torch.cat(maps, 1)

    def attention_loss(self, inputs: list[Tensor], instances_btii: Tensor, prompts: int) -> Tensor:
        """Return the mean `object_attention_loss` of the windows from `pop`, given instance maps (B,T,I,I) uint8. It
        uses one in `prompts` of the O objects."""
        cells = cell_instances(instances_btii.flatten(0, 1), self.side**2)
        cells = cells.view(*instances_btii.shape[:2], self.side, self.side, 1)
        losses = []
        for x, part in zip(inputs, cells.split([x.shape[1] // self.patch**2 for x in inputs], 1), strict=True):
            x = x.unflatten(0, (prompts * len(instances_btii), -1))[::prompts].flatten(0, 1)
            instances = to_patches(part, self.patch).flatten(1)
            losses.append(object_attention_loss(self.attention, x, instances, part.shape[1]))
        return sum(losses, torch.zeros(())) / len(losses)


def object_attention_loss(attention: PackedAttention, x_bnc: Tensor, instances_bn: Tensor, frames: int) -> Tensor:
    """Return -log of the attention of the first head to the same object in later frames, and of the second in earlier.

    Attention that is spread evenly gets almost no gradient from a mask. With this supervision the outputs of the two
    heads differ by where the object was and will be, which is its motion. Sequences (B,N,C) are frame-major.
    """
    weights, biases = attention.in_proj_weight.chunk(3)[:2], attention.in_proj_bias.chunk(3)[:2]
    q, k = (F.linear(x_bnc, w, b).float() for w, b in zip(weights, biases, strict=True))
    q, k = (y.unflatten(2, (attention.heads, -1))[:, :, :2].transpose(1, 2) for y in (q, k))
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).log_softmax(-1)
    time = torch.arange(frames, device=x_bnc.device).repeat_interleave(x_bnc.shape[1] // frames)
    same = (instances_bn[:, :, None] == instances_bn[:, None]) & (instances_bn > 0)[:, :, None]
    target = torch.stack((same & (time > time[:, None]), same & (time < time[:, None])), 1)
    has_target = target.any(-1)
    loss = -scores.masked_fill(~target, -1e4).logsumexp(-1)
    return (loss * has_target).sum() / has_target.sum().clamp(min=1)
