"""Clips in plain torch, one schedule per network: the reference of the graphs and of the runtime's schedules.

Written from the official inference code and for reading: memory is a dict by frame number, nothing is cached or folded,
and the settings of the manifest are all that is shared with `runtime/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from ..layers.common import upsample
from ..layers.positions import sine_distance
from ..stages.detr import DetrStage
from ..stages.mask_decoder import gate
from .parity_clip import CLICK, TOP_QUERIES

ReferenceFrame = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Masks (N,H,W) bool at source size, low_res_logits (N,s,s) and scores (N,) float32 of one frame."""

ReferenceClip = Iterator[ReferenceFrame]
Frames = Sequence[np.ndarray]
Ids = Sequence[int]
Clicks = Sequence[tuple[float, float]]
"""Positions of objects, as fractions of width and height."""
Settings = Mapping[str, Any]
Bank = Mapping[int, Tensor]
BILINEAR, BICUBIC = Resampling.BILINEAR, Resampling.BICUBIC


def to_pixels(frame: np.ndarray, high: int, wide: int, settings: Settings, resample: Resampling = BILINEAR) -> Tensor:
    """Resize a uint8 frame (H,W,3) and normalise it: (3,high,wide)."""
    resized = np.array(Image.fromarray(frame).resize((wide, high), resample))
    # `torch.tensor` makes all of them on the default device, which a benchmark sets
    mean, std = torch.tensor(settings["mean"]), torch.tensor(settings["std"])
    return ((torch.tensor(resized).float() / 255 - mean) / std).permute(2, 0, 1)


@torch.no_grad()
def samwise_clip(model: Any, networks: Settings, frames: Frames, tokens: Ids, verbs: Ids = ()) -> ReferenceClip:
    """Segment `frames`, uint8 RGB (H,W,3), by one sentence as token ids; the first of `verbs` is used."""
    settings = networks["samwise"]
    image_size, window = model.config.sam.image_size, settings["window"]
    token_ids = torch.tensor([tokens])
    verb = torch.tensor([verbs[0] if len(verbs) else 0]) if settings["text"]["motion"] else None
    memory: dict[int, Tensor] = {}
    pointers: dict[int, Tensor] = {}
    last_switch_frame = 0
    for start in range(0, len(frames), window):
        images = [_padded_pixels(f, image_size, settings) for f in frames[start : start + window]]
        clip = model.encode_clip(torch.stack([pixels for pixels, _ in images])[None], token_ids)
        sparse = model.prompt(clip.text, verb)
        without_verb = sparse[:, :3]
        sparse = sparse if len(verbs) else without_verb
        for offset, (_, resized) in enumerate(images):
            frame = start + offset
            embedding = clip.embedding[:, offset]
            fine = clip.high_res_0[:, offset], clip.high_res_1[:, offset]
            conditioned = _samwise_memory(model, settings["memory"], embedding, memory, pointers, frame)
            out = model.decode(conditioned, sparse, *fine, masks=1)
            pointers[frame] = out.pointer
            mask = remembered = upsample(out.low_res_logits, image_size)
            rule = settings["conditional_memory"]
            if rule and frame >= rule["first"] and frame - last_switch_frame >= rule["every"]:
                remembered, switched = _conditional_memory(model, out, mask, embedding, without_verb, fine)
                last_switch_frame = frame if switched else last_switch_frame
            memory[frame] = model.encode_memory(embedding, remembered)
            masks = _source_masks(mask, resized, frames[frame].shape[:2])
            yield masks, out.low_res_logits.float().cpu().numpy(), out.score.float().cpu().numpy()


def _padded_pixels(frame: np.ndarray, image_size: int, settings: Settings) -> tuple[Tensor, tuple[int, int]]:
    """Return pixels (3,I,I), resized and padded with zeros, and (height, width) of the resized image."""
    height, width = frame.shape[:2]
    short, longest = settings["resize"]["short"], settings["resize"]["max"]
    size = [short, int(short * max(height, width) / min(height, width))]
    if size[1] > longest:
        size = [int(longest * size[0] / size[1]), longest]
    high, wide = size if height <= width else size[::-1]
    return F.pad(to_pixels(frame, high, wide, settings), (0, image_size - wide, 0, image_size - high)), (high, wide)


def _samwise_memory(
    model: Any, limits: Settings, embedding: Tensor, memory: Bank, pointers: Bank, frame: int
) -> Tensor:
    """Condition the map on the last frames; the first frame has no memory."""
    if frame == 0:
        return model.add_no_mem_embed(embedding)
    distances = [d for d in range(limits["num_maskmem"] - 1, 0, -1) if frame - d in memory]  # oldest first
    newest = [p for p in range(frame - 1, frame - limits["max_obj_ptrs"], -1) if p in pointers]
    slots, ages = torch.stack([memory[frame - d] for d in distances], 1), torch.tensor([[d - 1 for d in distances]])
    return model.attend_memory(embedding, slots, ages, torch.stack([pointers[p] for p in newest], 1))


def _conditional_memory(
    model: Any, out: Any, mask: Tensor, embedding: Tensor, sparse: Tensor, fine: tuple[Tensor, Tensor]
) -> tuple[Tensor, bool]:
    """Return the mask to encode, chosen by the conditional memory encoder, and whether it differs from `mask`."""
    memoryless = model.decode(model.add_no_mem_embed(embedding), sparse, *fine, masks=1)
    stay, switch = model.cme_logits(out.pointer, memoryless.early_token)[0]
    if not switch > stay:
        return mask, False
    logits = upsample(memoryless.low_res_logits, model.config.sam.image_size)
    return torch.where(logits > 0, 10 * logits, mask), True


def _source_masks(mask_bii: Tensor, resized: Sequence[int], size: tuple[int, ...]) -> np.ndarray:
    """Crop the padding, resize to the source, threshold."""
    cropped = mask_bii[:, None, : resized[0], : resized[1]]
    return (F.interpolate(cropped, size, mode="bilinear", align_corners=False)[:, 0] > 0).cpu().numpy()


@torch.no_grad()
def sam2_clip(
    model: Any, networks: Settings, frames: Frames, tokens: Ids = (), verbs: Ids = (), clicks: Clicks = (CLICK,)
) -> ReferenceClip:
    """Track the objects at `clicks` on the first of `frames`, uint8 RGB (H,W,3), as one batch."""
    settings = networks["sam2"]
    features = (_sam2_features(model.sam, frame, settings) for frame in frames)
    yield from _click_clip(model.sam, settings["memory"], frames, features, clicks)


def _click_clip(
    sam: Any,
    limits: Settings,
    frames: Frames,
    features: Iterator[tuple[Tensor, Tensor, Tensor]],
    clicks: Clicks = (CLICK,),
) -> ReferenceClip:
    """Track the objects at `clicks` through `frames`, of which `features` gives the maps."""
    memory: dict[int, Tensor] = {}
    pointers: dict[int, Tensor] = {}
    longest = min(limits["max_obj_ptrs"], len(frames)) - 1
    prompts, side, count = sam.sam_prompt_encoder, sam.config.image_size, len(clicks)
    at = torch.tensor(clicks)[:, None] * side
    for t, (frame, maps) in enumerate(zip(frames, features, strict=True)):
        embedding, high_res_0, high_res_1 = (one.expand(count, *one.shape[1:]) for one in maps)
        if t == 0:
            conditioned = sam.add_no_mem_embed(embedding)
            points, labels = torch.cat((at, torch.zeros(count, 1, 2)), 1), torch.tensor([[1, -1]] * count)
        else:
            conditioned = _sam2_memory(sam, embedding, memory, pointers, t, limits, longest)
            points, labels = torch.zeros(count, 2, 2), torch.tensor([[-1, -1]] * count)
        image = conditioned + prompts.no_mask_embed.weight[0]
        sparse, grid = prompts.points(points, labels), prompts.pe_layer.grid(sam.config.side)
        out = sam.sam_mask_decoder(image, grid, sparse, high_res_0, high_res_1)
        best = torch.arange(count), 1 + out.iou[:, 1:].argmax(1)
        pointer = sam.obj_ptr_proj(out.tokens[best])
        logits, pointers[t] = gate(out.score, out.logits[best], pointer, sam.no_pointer)
        mask = upsample(logits, side)
        mask = (mask > 0).float() if t == 0 else mask.sigmoid()
        slot = sam.memory_encoder(embedding, upsample(mask, sam.config.mask_size))
        if sam.config.pointer_positions:
            slot = torch.where(out.score[:, None, None] <= 0, slot + sam.no_obj_embed_spatial, slot)
        memory[t] = slot.to(torch.bfloat16).float()
        masks = _source_masks(logits, logits.shape[1:], frame.shape[:2])
        yield masks, logits.float().cpu().numpy(), out.score.float().cpu().numpy()


def _sam2_features(sam: Any, frame: np.ndarray, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Encode a frame: the map (1,N,D) and the two fine maps."""
    side = sam.config.image_size
    x = sam.trunk.start(to_pixels(frame, side, side, settings, BICUBIC)[None])
    maps = []
    for stage in range(4):
        x = sam.trunk.run(stage, x)
        maps.append(x)
    return sam.features(maps)


def _sam2_memory(
    sam: Any, embedding: Tensor, memory: Bank, pointers: Bank, t: int, limits: Settings, longest: int
) -> Tensor:
    """Condition the map on frame 0, which has the last row of the temporal embedding, and on the frames just before."""
    count = limits["num_maskmem"]
    slots = [(0, count - 1), *((p, t - p - 1) for p in range(max(1, t - count + 1), t))]
    with_pointers = [0, *range(max(1, t - longest), t)]
    positions = None
    if sam.config.pointer_positions:
        distance = torch.tensor([[(t - p) / longest for p in with_pointers]])
        positions = sam.obj_ptr_tpos_proj(sine_distance(distance, sam.config.width)).expand(len(embedding), -1, -1)
    maps, rows = (
        torch.stack([memory[p] for p, _ in slots], 1),
        torch.tensor([[row for _, row in slots]] * len(embedding)),
    )
    return sam.attend_memory(embedding, maps, rows, torch.stack([pointers[p] for p in with_pointers], 1), positions)


@torch.no_grad()
def refersam_clip(model: Any, networks: Settings, frames: Frames, tokens: Ids, verbs: Ids = ()) -> ReferenceClip:
    """Segment each frame, uint8 RGB (H,W,3), as an image of its own by one sentence."""
    size, ids = model.config.image_size, torch.tensor([list(tokens)])
    for frame in frames:
        pixels = to_pixels(frame, size, size, networks["refersam"])
        low_res, _, iou = model(pixels[None], ids, torch.tensor([len(tokens)]))
        logits = F.interpolate(low_res[:, None], frame.shape[:2], mode="bilinear", align_corners=True)
        yield (logits[:, 0] >= 0).numpy(), low_res.numpy(), iou.numpy()


@torch.no_grad()
def sam3_clip(model: Any, networks: Settings, frames: Frames, tokens: Ids, verbs: Ids = ()) -> ReferenceClip:
    """Detect a concept, as token ids, on the first of `frames`, uint8 RGB (H,W,3); then track the object at `CLICK`."""
    settings = networks["sam3"]
    yield _sam3_detection(model, settings, frames[0], tokens)
    if model.config.tracker:
        features = (_sam3_features(model, settings, frame) for frame in frames)
        yield from _click_clip(model.tracker, settings["memory"], frames, features)


def _sam3_detection(model: Any, settings: Settings, frame: np.ndarray, tokens: Ids) -> ReferenceFrame:
    """Return the most probable queries of a concept."""
    text, size, detector = settings["text"], settings["resize"]["max"], model.detector
    language, head = detector.backbone.language_backbone, detector.segmentation_head
    padded = torch.tensor([[*tokens, *[text["padding"]] * (text["max_tokens"] - len(tokens))]])
    visible, always = padded != text["padding"], torch.ones(1, 1, dtype=torch.bool)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None]
    resized = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
    level, middle, fine = model.detector_levels(_normalized(resized.float() / 255, settings))
    cls = detector.geometry_encoder(level, level.new_ones(1, 1, 4), padded.new_zeros(1, 1), always)
    prompt, mask = torch.cat((language.resizer(language.encoder(padded)), cls), 1), torch.cat((visible, always), 1)
    detr = DetrStage(detector.transformer, detector.dot_prod_scoring).eval()
    encoded, queries, _, scores, presence = detr(level, padded.new_zeros(1), prompt, mask)
    joint = scores[0].sigmoid() * presence[0].sigmoid()
    top = joint.topk(min(TOP_QUERIES, len(joint))).indices.sort().values
    logits = head(head.pixel_embedding(encoded, prompt, mask, middle, fine), queries[:, top])[0]
    masks = F.interpolate(logits, size=frame.shape[:2], mode="bilinear", align_corners=False)[0] > 0
    return masks.numpy(), logits[0].numpy(), scores[0, top].numpy()


def _normalized(image_bchw: Tensor, settings: Settings) -> Tensor:
    """Normalise an image in 0..1, in its own type."""
    mean, std = (image_bchw.new_tensor(settings[name])[:, None, None] for name in ("mean", "std"))
    return (image_bchw - mean) / std


def _sam3_features(model: Any, settings: Settings, frame: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Encode a frame of a video for the tracker: the map (1,N,D) and the two fine maps."""
    size = settings["resize"]["max"]
    resized = torch.from_numpy(np.array(Image.fromarray(frame).resize((size, size), BICUBIC)))
    unit = (resized.permute(2, 0, 1)[None].float() / 255).half()
    features: tuple[Tensor, Tensor, Tensor] = model.tracker_features(_normalized(unit, settings).float())
    return features
