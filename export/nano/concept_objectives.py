"""Losses of concept training: presence, scores and boxes after every decoder layer, masks, and what every cell shows.

P concepts on B images, Q queries, G objects at most. The last decoder layer gives one query to each object, so that it
learns to find each object once; the layers before it give `MANY`, which makes boxes converge in fewer steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.positions import sine_grid
from ..models.nano_concepts import NanoConcepts, NanoConceptsConfig
from .auxiliary_heads import AppearanceHead
from .clip_forward import normalize
from .concept_batches import ConceptBatch
from .objectives import Losses

WEIGHTS = {
    "presence": 1.0, "score": 2.0, "box": 5.0, "overlap": 2.0, "mask": 4.0, "dice": 2.0, "semantic": 2.0,
    "coverage": 2.0, "noun": 0.5, "colour": 0.5,
}  # fmt: skip
EARLIER = 0.5
"""Weight of the layers before the last one."""

MANY = 3
"""Queries per object in the layers before the last one."""

ABSENT = 0.3
"""Weight of the scores where the concept is absent, which presence decides."""

MASKED_PART = 0.4
"""Part of the concepts whose masks are computed; they cost more than all else."""


class ConceptObjectives(nn.Module):
    """Heads that only training uses, and the losses."""

    def __init__(self, config: NanoConceptsConfig) -> None:
        super().__init__()
        self.appearance = AppearanceHead(config.width, ("noun", "colour"))
        self.coverage = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 1))
        self.padding = config.padding
        self.register_buffer("grid", sine_grid(config.trunk.side, config.width), persistent=False)

    def losses(self, model: NanoConcepts, batch: ConceptBatch, generator: torch.Generator) -> Losses:
        """Return the losses of a batch; `generator` chooses the concepts whose masks are computed."""
        detector = model.detector
        data = {name: torch.from_numpy(getattr(batch, name)) for name in ConceptBatch.__slots__}
        index, instances = data["map_index"], data["instance_map"]
        with torch.no_grad():
            trunk = model.encode_image(normalize(data["frames"][None])[0])
        level = detector.levels.coarse(trunk)
        out: Losses = dict(self.appearance(level, instances, data["appearance"]))
        prompt, mask = self.encode_prompts(model, level, data)
        first, *rest = detector.transformer.encoder.layers
        x = first(first.self_attention(level, self.grid)[index], prompt, mask)
        for layer in rest:
            x = layer(layer.self_attention(x, self.grid), prompt, mask)
        truth = (instances[index][:, None] == data["objects"][:, :, None, None]) & (data["objects"] > 0)[
            ..., None, None
        ]
        out["coverage"] = _coverage_loss(self.coverage(x).float().squeeze(2), truth.any(1))
        queries, chosen = self._detection(model, x, prompt, mask, data, out)
        self._masks(model, x, prompt, mask, trunk, queries, chosen, truth, index, generator, out)
        return out

    def encode_prompts(self, model: NanoConcepts, level: Tensor, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the prompt tokens (P,T,D) of words and exemplars, and which are no padding (P,T)."""
        language, tokens = model.detector.backbone.language_backbone, data["tokens"]
        text = language.resizer(language.encoder(tokens))
        boxes, labels, visible = data["exemplars"], data["labels"], data["visible"]
        geometry = model.detector.geometry_encoder(level[data["map_index"]], boxes, labels, visible)
        return torch.cat((text, geometry), 1), torch.cat((tokens != self.padding, visible), 1)

    def _detection(
        self, model: NanoConcepts, x: Tensor, prompt: Tensor, mask: Tensor, data: dict[str, Tensor], out: Losses
    ) -> tuple[Tensor, Tensor]:
        """Add the losses of all decoder layers. Returns the last queries (P,Q,D) and their objects (P,Q), -1: none."""
        detector, valid = model.detector, data["objects"] > 0
        present, count = valid.any(1), valid.sum().clamp(min=1)
        layers = list(detector.transformer.decoder.run_layers(x, self.grid, prompt, mask))
        for name in ("presence", "score", "box", "overlap"):
            out[name] = x.new_zeros((), dtype=torch.float32)
        for i, (queries, boxes, token) in enumerate(layers):
            last, weight = i == len(layers) - 1, 1.0 if i == len(layers) - 1 else EARLIER
            scores, boxes = detector.dot_prod_scoring(queries, prompt, mask).float(), boxes.float()
            presence = detector.transformer.decoder.presence(token).float()
            chosen = match(scores.detach(), boxes.detach(), data["boxes"], valid, 1 if last else MANY)
            found, objects = chosen >= 0, chosen.clamp(min=0)
            target = data["boxes"].gather(1, objects[..., None].expand(-1, -1, 4))
            pairs = count * (1 if last else MANY)
            out["presence"] += weight * F.binary_cross_entropy_with_logits(presence, present.float())
            out["score"] += weight * score_loss(scores, found, present) / pairs
            out["box"] += weight * ((boxes - target).abs().sum(2) * found).sum() / pairs
            out["overlap"] += weight * ((1 - generalized_iou(boxes, target)) * found).sum() / pairs
        joint = scores.detach().sigmoid() * presence.detach().sigmoid()[:, None]
        out["_presence_accuracy"] = ((presence > 0) == present).float().mean()
        out["_recall"] = ((joint > 0.5) & found).sum() / count
        out["_precision"] = ((joint > 0.5) & found).sum() / (joint > 0.5).sum().clamp(min=1)
        return queries, chosen

    def _masks(
        self,
        model: NanoConcepts,
        x: Tensor,
        prompt: Tensor,
        mask: Tensor,
        trunk: Tensor,
        queries: Tensor,
        chosen: Tensor,
        truth: Tensor,
        index: Tensor,
        generator: torch.Generator,
        out: Losses,
    ) -> None:
        """Add the losses of instance masks and the semantic mask, of some of the concepts."""
        head, side = model.detector.segmentation_head, truth.shape[-1] // 4
        wanted = torch.rand(len(x), generator=generator) < MASKED_PART * torch.where((chosen >= 0).any(1), 1.4, 0.3)
        wanted[0] = True
        rows = wanted.nonzero()[:, 0]
        level_2, level_4 = (y[index[rows]] for y in model.detector.levels.fine(trunk))
        pixels = head.pixel_embedding(x[rows], prompt[rows], mask[rows], level_2, level_4)
        logits, semantic = head(pixels, queries[rows])
        soft = F.avg_pool2d(truth[rows].flatten(0, 1)[:, None].float(), 4)[:, 0].unflatten(0, truth[rows].shape[:2])
        concept, query = (chosen[rows] >= 0).nonzero().unbind(1)
        if len(concept):
            predicted, target = logits[concept, query].float(), soft[concept, chosen[rows][concept, query]]
            out["mask"] = F.binary_cross_entropy_with_logits(predicted, target, reduction="none").mean() * side / 8
            out["dice"] = dice_loss(predicted, target)
            on, real = predicted.detach() > 0, target > 0.5
            out["_mask_iou"] = ((on & real).sum((1, 2)) / (on | real).sum((1, 2)).clamp(min=1)).mean()
        everything = soft.amax(1)
        out["semantic"] = F.binary_cross_entropy_with_logits(semantic.float(), everything)


def match(scores_bq: Tensor, boxes_bq4: Tensor, targets_bg4: Tensor, valid_bg: Tensor, many: int) -> Tensor:
    """Give `many` queries to each object, the best pair first: (B,Q) int64 index of the object, -1 for none."""
    distance = (boxes_bq4[:, :, None] - targets_bg4[:, None]).abs().sum(3)
    overlap = generalized_iou(boxes_bq4[:, :, None], targets_bg4[:, None])
    cost = 5 * distance - 2 * overlap - 2 * scores_bq.sigmoid()[..., None]
    cost = cost.masked_fill(~valid_bg[:, None], torch.inf)
    batch, queries, objects = cost.shape
    chosen = torch.full((batch, queries), -1)
    left = torch.full((batch, objects), many)
    rows = torch.arange(batch)
    for _ in range(many * int(valid_bg.sum(1).max())):
        best, at = cost.flatten(1).min(1)
        query, found = at // objects, at % objects
        usable = best < torch.inf
        chosen[rows[usable], query[usable]] = found[usable]
        cost[rows, query] = torch.inf
        left[rows, found] -= 1
        cost = cost.masked_fill((left <= 0)[:, None], torch.inf)
    return chosen


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalized IoU (Rezatofighi et al., 2019) of boxes cx, cy, w, h (...,4)."""
    (a0, a1), (b0, b1) = (((x[..., :2] - x[..., 2:] / 2), (x[..., :2] + x[..., 2:] / 2)) for x in (a, b))
    inner = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inner
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod(-1)
    return inner / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def score_loss(scores_bq: Tensor, found_bq: Tensor, present_b: Tensor) -> Tensor:
    """Return the sum of the cross entropies; a query without object counts by how sure it is (varifocal loss)."""
    p = scores_bq.sigmoid()
    weight = torch.where(found_bq, 1.0, 0.75 * p.detach() ** 2)
    loss = F.binary_cross_entropy_with_logits(scores_bq, found_bq.float(), reduction="none") * weight
    return (loss * torch.where(present_b, 1.0, ABSENT)[:, None]).sum()


def dice_loss(logits_khw: Tensor, target_khw: Tensor) -> Tensor:
    p = logits_khw.sigmoid()
    both = 2 * (p * target_khw).sum((1, 2))
    return (1 - (both + 1) / (p.sum((1, 2)) + target_khw.sum((1, 2)) + 1)).mean()


def _coverage_loss(logits_bn: Tensor, truth_bii: Tensor) -> Tensor:
    side = int(logits_bn.shape[1] ** 0.5)
    target = F.avg_pool2d(truth_bii[:, None].float(), truth_bii.shape[1] // side).flatten(1)
    return F.binary_cross_entropy_with_logits(logits_bn, target)


def total(losses: Losses) -> Tensor:
    """Return the weighted sum of the losses."""
    return sum((WEIGHTS[name] * x for name, x in losses.items() if not name.startswith("_")), torch.zeros(()))
