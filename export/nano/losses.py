"""Losses per frame and object: mask (binary cross-entropy and dice), presence, IoU, conditional memory decision.

O objects, T frames. Ground truth `truth` (O,T,I,I) bool; an object is present on a frame if any pixel of it is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip_forward import TrackedClip

WEIGHTS = {
    "bce": 6.0,
    "dice": 2.0,
    "score": 1.0,
    "iou": 0.5,
    "cme": 0.5,
    "noun": 0.5,
    "colour": 0.25,
    "motion": 0.5,
    "velocity": 1.0,
    "attention": 0.3,
    "text_match": 1.0,
}
ABSENT_WEIGHT = 0.1
"""Weight of the mask loss where the object is absent: the presence score empties the mask there."""


def ground_truth(instance_map: Tensor, targets: Tensor) -> Tensor:
    """Select instance ids (B,K) in instance maps (B,T,I,I) uint8: (B*K,T,I,I) bool."""
    return (instance_map[:, None] == targets[:, :, None, None, None]).flatten(0, 1)


def mask_losses(logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
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
    total = weight.sum().clamp(min=1)
    return {"bce": (bce * weight).sum() / total, "dice": (dice * present).sum() / present.sum().clamp(min=1)}


def score_losses(score: Tensor, iou: Tensor, logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Compute losses of the presence logit (O,T) and of the predicted IoU (O,T) in 0..1, and J for the log."""
    present = truth.flatten(2).any(2).float()
    with torch.no_grad():
        predicted = (
            F.interpolate(logits.detach().float(), size=truth.shape[-2:], mode="bilinear", align_corners=False) > 0
        )
        union = (predicted | truth).flatten(2).sum(2)
        real = (predicted & truth).flatten(2).sum(2) / union.clamp(min=1)
    score_loss = F.binary_cross_entropy_with_logits(score.float(), present)
    iou_loss = ((iou.float() - real).abs() * present).sum() / present.sum().clamp(min=1)
    return {"score": score_loss, "iou": iou_loss, "_j": (real * present).sum() / present.sum().clamp(min=1)}


def frame_losses(logits: Tensor, iou: Tensor, score: Tensor, truth: Tensor) -> dict[str, Tensor]:
    return {**mask_losses(logits, truth), **score_losses(score, iou, logits, truth)}


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
    side, labels = tracked.logits.shape[-1], []
    for t, _, memoryless_logits in tracked.decisions:
        small = F.interpolate(truth[:, t, None].float(), size=(side, side), mode="area")[:, 0] > 0.5
        with_memory = (tracked.logits[:, t] > 0) & (tracked.score[:, t, None, None] > 0)
        labels.append(decision_labels(with_memory, memoryless_logits > 0, small))
    return torch.cat(labels)


def decision_loss(tracked: TrackedClip, truth: Tensor) -> Tensor | None:
    """Compute the cross-entropy of all decisions, with the reference's double weight for switches; None without
    decisions."""
    if not tracked.decisions:
        return None
    label = clip_decision_labels(tracked, truth)
    weight = torch.where(label == 1, 2.0, 1.0) * (label >= 0)
    logits = torch.cat([decision.logits.float() for decision in tracked.decisions])
    loss = F.cross_entropy(logits, label.clamp(min=0), reduction="none")
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def total(losses: dict[str, Tensor]) -> Tensor:
    """Return the weighted sum; names that begin with '_' are logged only."""
    return sum(WEIGHTS[name] * value for name, value in losses.items() if not name.startswith("_"))
