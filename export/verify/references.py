"""A clip through SAMWISE in plain torch: the yardstick for the graphs and for the runtime's schedule.

Written for reading, from the description of the official inference code: memory is a dict by frame number, everything
is recomputed where that is simplest, and nothing of `runtime/` is used but the numbers of the manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..layers.common import upsample
from ..layers.positions import sine_distance
from ..stages.mask_decoder import gate
from .parity_clip import CLICK

Frame = tuple[np.ndarray, np.ndarray, np.ndarray]


@torch.no_grad()
def samwise_clip(
    model: Any,
    networks: Mapping[str, Any],
    frames: Sequence[np.ndarray],
    tokens: Sequence[int],
    verbs: Sequence[int] = (),
) -> Iterator[Frame]:
    """`frames` uint8 RGB (H,W,3), any number; one sentence as token ids; `verbs` positions in it (the first counts).

    Yields per frame masks (1,H,W) bool at source size, low_res_logits (1,s,s) and scores (1,) float32.
    """
    settings = networks["samwise"]
    image_size, window = model.config.sam.image_size, settings["window"]
    token_ids = torch.tensor([tokens])
    verb = torch.tensor([verbs[0] if len(verbs) else 0]) if settings["text"]["motion"] else None
    memory: dict[int, Tensor] = {}
    pointers: dict[int, Tensor] = {}
    fired = 0
    for start in range(0, len(frames), window):
        pictures = [preprocess(f, image_size, settings) for f in frames[start : start + window]]
        clip = model.encode_clip(torch.stack([pixels for pixels, _ in pictures])[None], token_ids)
        sparse = model.prompt(clip.text, verb)
        without_verb = sparse[:, :3]
        sparse = sparse if len(verbs) else without_verb
        for offset, (_, resized) in enumerate(pictures):
            frame = start + offset
            embedding = clip.embedding[:, offset]
            fine = clip.high_res_0[:, offset], clip.high_res_1[:, offset]
            conditioned = _recall(model, settings["memory"], embedding, memory, pointers, frame)
            out = model.decode(conditioned, sparse, *fine, masks=1)
            pointers[frame] = out.pointer
            mask = _upsample(out.low_res_logits, image_size)
            remembered, switched = _reconsider(model, settings, out, mask, embedding, without_verb, fine, frame, fired)
            fired = frame if switched else fired
            memory[frame] = model.remember(embedding, remembered)
            yield (
                _source_masks(mask, resized, frames[frame].shape[:2]),
                out.low_res_logits.float().numpy(),
                out.score.float().numpy(),
            )


def preprocess(frame: np.ndarray, image_size: int, settings: Mapping[str, Any]) -> tuple[Tensor, tuple[int, int]]:
    """Pixels (3,I,I), resized, normalised, then padded with zeros; and (height, width) of the resized picture."""
    height, width = frame.shape[:2]
    short, longest = settings["resize"]["short"], settings["resize"]["max"]
    size = [short, int(short * max(height, width) / min(height, width))]
    if size[1] > longest:
        size = [int(longest * size[0] / size[1]), longest]
    high, wide = size if height <= width else size[::-1]
    picture = np.asarray(Image.fromarray(frame).resize((wide, high), Image.Resampling.BILINEAR))
    mean, std = torch.tensor(settings["mean"]), torch.tensor(settings["std"])
    pixels = ((torch.from_numpy(picture.copy()).float() / 255 - mean) / std).permute(2, 0, 1)
    return F.pad(pixels, (0, image_size - wide, 0, image_size - high)), (high, wide)


def _recall(
    model: Any,
    limits: Mapping[str, int],
    embedding: Tensor,
    memory: Mapping[int, Tensor],
    pointers: Mapping[int, Tensor],
    frame: int,
) -> Tensor:
    """The map, conditioned on the last frames; on the first frame there is none."""
    if frame == 0:
        return model.without_memory(embedding)
    back = [d for d in range(limits["num_maskmem"] - 1, 0, -1) if frame - d in memory]  # oldest first
    newest = [p for p in range(frame - 1, frame - limits["max_obj_ptrs"], -1) if p in pointers]
    return model.attend_memory(
        embedding,
        torch.stack([memory[frame - d] for d in back], 1),
        torch.tensor([[d - 1 for d in back]]),
        torch.stack([pointers[p] for p in newest], 1),
    )


def _reconsider(
    model: Any,
    settings: Mapping[str, Any],
    out: Any,
    mask: Tensor,
    embedding: Tensor,
    sparse: Tensor,
    fine: tuple[Tensor, Tensor],
    frame: int,
    fired: int,
) -> tuple[Tensor, bool]:
    """The conditional memory encoder: what the memory should hold of this frame, and whether that is another mask."""
    rule = settings["conditional_memory"]
    if rule is None or frame < rule["first"] or frame - fired < rule["every"]:
        return mask, False
    again = model.decode(model.without_memory(embedding), sparse, *fine, masks=1)
    stay, switch = model.decide(out.pointer, again.early_token)[0]
    if not switch > stay:
        return mask, False
    memoryless = _upsample(again.low_res_logits, model.config.sam.image_size)
    return torch.where(memoryless > 0, 10 * memoryless, mask), True


def _upsample(logits_bss: Tensor, side: int) -> Tensor:
    return F.interpolate(logits_bss[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def _source_masks(mask_bii: Tensor, resized: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Crop the padding, resize to the source, threshold."""
    cropped = mask_bii[:, None, : resized[0], : resized[1]]
    return (F.interpolate(cropped, size, mode="bilinear", align_corners=False)[:, 0] > 0).numpy()


@torch.no_grad()
def sam2_clip(
    model: Any,
    networks: Mapping[str, Any],
    frames: Sequence[np.ndarray],
    tokens: Sequence[int] = (),
    verbs: Sequence[int] = (),
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`frames` uint8 RGB (H,W,3). Yields per frame masks (1,H,W) bool, low_res_logits (1,s,s), scores (1,) float32."""
    sam, memory, pointers = model.sam, {}, {}
    settings = networks["sam2"]
    reach = settings["memory"]
    longest = min(reach["max_obj_ptrs"], len(frames)) - 1
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
    slots = [(0, reach["num_maskmem"] - 1), *((p, t - p - 1) for p in range(max(1, t - reach["num_maskmem"] + 1), t))]
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
