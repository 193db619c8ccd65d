"""A clip through SAM 2 in plain torch: one click on the first frame, then tracking. The yardstick for the graphs and for
the runtime's schedule, written for reading; see `reference.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .clips import CLICK
from .layers.common import upsample
from .layers.positions import sine_distance
from .stages.mask_decoder import gate


@torch.no_grad()
def sam2_clip(
    model: Any,
    settings: Mapping[str, Any],
    frames: Sequence[np.ndarray],
    tokens: Sequence[int] = (),
    verbs: Sequence[int] = (),
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`frames` uint8 RGB (H,W,3). Yields per frame masks (1,H,W) bool, low_res_logits (1,s,s), scores (1,) float32."""
    sam, memory, pointers = model.sam, {}, {}
    reach = settings["sam2"]["memory"]
    longest = min(reach["pointers"], len(frames)) - 1
    click = torch.tensor([CLICK]) * sam.config.image_size
    for t, frame in enumerate(frames):
        embedding, high_res_0, high_res_1 = _encode(sam, frame, settings)
        if t == 0:
            conditioned = sam.without_memory(embedding)
            points, labels = torch.stack((click, torch.zeros(1, 2)), 1), torch.tensor([[1, -1]])
        else:
            conditioned = _attend(sam, embedding, memory, pointers, t, reach, longest)
            points, labels = torch.zeros(1, 2, 2), torch.tensor([[-1, -1]])
        prompts = sam.sam_prompt_encoder
        dense, sparse, grid = (
            prompts.no_mask_embed.weight[0],
            prompts.points(points, labels),
            prompts.pe_layer.grid(sam.config.side),
        )
        out = sam.sam_mask_decoder(conditioned + dense, grid, sparse, high_res_0, high_res_1)
        best = 1 + int(out.iou[0, 1:].argmax())
        pointer = sam.obj_ptr_proj(out.tokens[:, best])
        logits, pointers[t] = gate(out.score, out.logits[:, best], pointer, sam.no_pointer)
        mask = upsample(logits, sam.config.image_size)
        slot = sam.memory_encoder(embedding, (mask > 0).float() if t == 0 else mask.sigmoid())
        if sam.config.pointer_positions and out.score <= 0:
            slot = slot + sam.no_obj_embed_spatial
        memory[t] = slot.to(torch.bfloat16).float()
        full = F.interpolate(logits[:, None], frame.shape[:2], mode="bilinear", align_corners=False)[:, 0]
        yield (full > 0).numpy(), logits.float().numpy(), out.score.float().numpy()


def _encode(sam: Any, frame: np.ndarray, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The map (1,N,D) and the two fine maps of a frame."""
    side = sam.config.image_size
    picture = np.array(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC))
    mean, std = torch.tensor(settings["mean"]), torch.tensor(settings["std"])
    x = ((torch.from_numpy(picture).float() / 255 - mean) / std).permute(2, 0, 1)[None]
    x, maps = sam.trunk.start(x), []
    for stage in range(4):
        x = sam.trunk.run(stage, x)
        maps.append(x)
    neck, decoder = sam.neck, sam.sam_mask_decoder
    fine = [
        conv(neck.lateral(level)(maps[level])).permute(0, 3, 1, 2)
        for level, conv in enumerate((decoder.conv_s0, decoder.conv_s1))
    ]
    return neck.embedding(maps[2], maps[3]).flatten(1, 2), *fine


def _attend(
    sam: Any,
    embedding: Tensor,
    memory: Mapping[int, Tensor],
    pointers: Mapping[int, Tensor],
    t: int,
    reach: Mapping[str, int],
    longest: int,
) -> Tensor:
    """Frame 0 has the last row of the temporal embedding, the frames just before have the first ones."""
    slots = [(0, reach["slots"] - 1), *((p, t - p - 1) for p in range(max(1, t - reach["slots"] + 1), t))]
    seen = [0, *range(max(1, t - longest), t)]
    places = None
    if sam.config.pointer_positions:
        distance = torch.tensor([[(t - p) / longest for p in seen]])
        places = sam.obj_ptr_tpos_proj(sine_distance(distance, sam.config.width))
    ages = torch.tensor([[age for _, age in slots]])
    return sam.attend_memory(
        embedding,
        torch.stack([memory[p] for p, _ in slots], 1),
        ages,
        torch.stack([pointers[p] for p in seen], 1),
        places,
    )
