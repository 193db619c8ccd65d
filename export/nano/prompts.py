"""Visual prompts drawn from the ground truth of frame 0, as a person would give them: clicks, a loose box, a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.samwise import Samwise
from .clip_forward import VisualPrompt

TOKENS = 4
"""Three points (or a box and a point) and the padding that SAM adds where there is no box."""
MODES = ("click", "clicks", "box", "mask")


def inner_points(masks: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` random points (O,count,2) x, y well inside the masks (O,I,I), bool; anywhere where a mask is empty."""
    soft = F.avg_pool2d(masks[:, None].float(), 9, 1, 4)[:, 0]
    weight = (masks * soft**4).flatten(1) + 1e-9
    index = torch.multinomial(weight, count, replacement=True, generator=generator)
    return torch.stack((index % masks.shape[2], index // masks.shape[2]), -1).float()


def boxes(masks: Tensor) -> Tensor:
    """Tight boxes (O,4) x0, y0, x1, y1 of masks (O,I,I), bool."""
    side = masks.shape[-1]
    at = torch.arange(side, device=masks.device)
    columns, rows = masks.any(1), masks.any(2)
    low = [torch.where(x, at, side).amin(1) for x in (columns, rows)]
    high = [torch.where(x, at + 1, 0).amax(1) for x in (columns, rows)]
    return torch.stack((*low, *high), 1).float()


def start(
    model: Samwise,
    masks: Tensor,
    modes: Tensor,
    permanent: bool,
    jitter: float = 0.08,
    generator: torch.Generator | None = None,
    scaled: bool = True,
) -> VisualPrompt:
    """Prompts for masks (O,I,I), bool. `modes` (O) indexes `MODES`; `jitter` moves box corners by a part of the box's size.

    A mask prompt enters as SAM 2 gives it (`scaled`: through `mask_downsample`) or as plain low-res logits.
    """
    objects, device = len(masks), masks.device
    points, labels = torch.zeros(objects, TOKENS, 2, device=device), torch.full((objects, TOKENS), -1, device=device)
    real = torch.zeros(objects, TOKENS, dtype=torch.bool, device=device)
    real[:, :2] = True
    inside, outside = inner_points(masks, 3, generator), inner_points(~masks, 3, generator)
    one, more, box, mask = (modes == i for i in range(len(MODES)))
    click = one | more
    points[click, 0], labels[click, 0] = inside[click, 0], 1
    # the second and third click are inside or outside by chance
    for i in (1, 2):
        positive = torch.rand(objects, device=device, generator=generator) < 0.5
        where = torch.where(positive[:, None], inside[:, i], outside[:, i])
        points[more, i], labels[more, i] = where[more], positive.long()[more]
    real[more] = True
    edges = boxes(masks)
    size = (edges[:, 2:] - edges[:, :2]).repeat(1, 2)
    edges = edges + jitter * size * (2 * torch.rand(edges.shape, device=device, generator=generator) - 1)
    corners = edges.clamp(0, masks.shape[-1]).unflatten(1, (2, 2))
    points[box, :2] = corners[box]
    labels[box, 0], labels[box, 1] = 2, 3
    real[box, 2] = True
    prompts, sam = model.sam.sam_prompt_encoder, model.sam
    whole = masks[:, None].float()
    low = sam.mask_downsample(whole)[:, 0] if scaled else F.avg_pool2d(whole, 4)[:, 0] * 20 - 10
    nothing = prompts.no_mask_embed.weight[0].expand(objects, model.config.sam.side**2, -1)
    dense = torch.where(mask[:, None, None], prompts.masks(low), nothing)
    return VisualPrompt(prompts.points(points, labels), real, dense, mask, masks, permanent)
