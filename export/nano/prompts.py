"""Simulated visual prompts, drawn from the ground truth of frame 0: clicks, a loose box, or a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..models.samwise import Samwise
from .clip_forward import VisualPrompt

TOKENS = 4
"""Three points (or a box and a point) and the padding that SAM adds where there is no box."""
MODES = ("click", "clicks", "box", "mask")


def inner_points(masks: Tensor, count: int, rng: Generator | None = None) -> Tensor:
    """Draw `count` points (O,count,2) x, y well inside the masks (O,I,I), bool; anywhere if a mask is empty."""
    soft = F.avg_pool2d(masks[:, None].float(), 9, 1, 4)[:, 0]
    weight = (masks * soft**4).flatten(1) + 1e-9
    index = torch.multinomial(weight, count, replacement=True, generator=rng)
    return torch.stack((index % masks.shape[2], index // masks.shape[2]), -1).float()


def boxes(masks: Tensor) -> Tensor:
    """Return tight boxes (O,4) x0, y0, x1, y1 of masks (O,I,I), bool."""
    side, sides = masks.shape[-1], (masks.any(1), masks.any(2))
    at = torch.arange(side, device=masks.device)
    low, high = [torch.where(x, at, side).amin(1) for x in sides], [torch.where(x, at + 1, 0).amax(1) for x in sides]
    return torch.stack((*low, *high), 1).float()


def encode_prompts(
    model: Samwise,
    masks: Tensor,
    modes: Tensor,
    permanent: bool,
    rng: Generator | None = None,
    jitter: float = 0.08,
    scaled: bool = True,
) -> VisualPrompt:
    """Encode prompts for masks (O,I,I), bool. `modes` (O) indexes `MODES`; `jitter` moves box corners by a part of the
    size of the box. A mask prompt enters as in SAM 2 (`scaled`: through `mask_downsample`) or as low-res logits."""
    points, labels, is_real = _points(masks, modes, jitter, rng)
    sam, encoder = model.sam, model.sam.sam_prompt_encoder
    whole, is_mask = masks[:, None].float(), modes == MODES.index("mask")
    low_res = sam.mask_downsample(whole)[:, 0] if scaled else F.avg_pool2d(whole, 4)[:, 0] * 20 - 10
    no_mask = encoder.no_mask_embed.weight[0].expand(len(masks), model.config.sam.side**2, -1)
    dense = torch.where(is_mask[:, None, None], encoder.masks(low_res), no_mask)
    return VisualPrompt(encoder.points(points, labels), is_real, dense, is_mask, masks, permanent)


def _points(masks: Tensor, modes: Tensor, jitter: float, rng: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw points (O,TOKENS,2), their SAM labels (O,TOKENS), and which of them are real tokens (O,TOKENS)."""
    objects, device = len(masks), masks.device
    points, labels = torch.zeros(objects, TOKENS, 2, device=device), torch.full((objects, TOKENS), -1, device=device)
    is_real = torch.zeros(objects, TOKENS, dtype=torch.bool, device=device)
    is_real[:, :2] = True
    inside, outside = inner_points(masks, 3, rng), inner_points(~masks, 3, rng)
    click, clicks, box, _ = (modes == mode for mode in range(len(MODES)))
    first = click | clicks
    points[first, 0], labels[first, 0] = inside[first, 0], 1
    # the second and third click are inside or outside at random
    for i in (1, 2):
        positive = torch.rand(objects, device=device, generator=rng) < 0.5
        position = torch.where(positive[:, None], inside[:, i], outside[:, i])
        points[clicks, i], labels[clicks, i] = position[clicks], positive.long()[clicks]
    is_real[clicks] = True
    edges = boxes(masks)
    size = (edges[:, 2:] - edges[:, :2]).repeat(1, 2)
    edges = edges + jitter * size * (2 * torch.rand(edges.shape, device=device, generator=rng) - 1)
    points[box, :2] = edges.clamp(0, masks.shape[-1]).unflatten(1, (2, 2))[box]
    labels[box, 0], labels[box, 1] = 2, 3
    is_real[box, 2] = True
    return points, labels, is_real
