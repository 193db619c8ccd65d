"""Masks of everything in a picture: a grid of clicks, filters, and suppression of what was found twice.

The steps, their order and their defaults are those of SAM 2's automatic mask generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np

from ...errors import UserError
from ...imaging.masks import suppress
from ...imaging.morphology import without_small_regions
from ...results import Segment

NEAR = 20.0
"""Pixels: a mask that comes so close to the edge of a crop is cut off there, unless it is the picture's edge."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to look.

    points_per_side         clicks per side of the grid
    points_per_batch        clicks whose masks are held at picture size at a time
    pred_iou_thresh         least IoU that the network expects
    stability_score_thresh  least IoU of the mask at logit +offset with that at -offset
    box_nms_thresh          most overlap (IoU of boxes) of two masks
    crop_n_layers           layer n looks again at 4^n overlapping crops
    crop_nms_thresh         most overlap of masks from different crops; those of smaller crops win
    crop_overlap_ratio      overlap of the crops of layer 1, as part of the short side
    crop_n_points_downscale_factor  the grid of layer n has points_per_side / factor^n points per side
    min_mask_region_area    holes and islands of at most so many low-resolution pixels are removed; 0 keeps them
    use_m2m                 refine every mask by giving it back to the network
    multimask_output        three candidates per click
    Raises UserError for a value out of range.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    use_m2m: bool = False
    multimask_output: bool = True

    def __post_init__(self) -> None:
        for name, low in (
            ("points_per_side", 1),
            ("points_per_batch", 1),
            ("crop_n_layers", 0),
            ("crop_n_points_downscale_factor", 1),
            ("min_mask_region_area", 0),
        ):
            if not isinstance(getattr(self, name), (int, np.integer)) or getattr(self, name) < low:
                raise UserError(f"{name} must be a whole number of {low} or more, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class _Found:
    """A mask at picture size, packed to bits; `edges` are its first and last pixel in x and y."""

    bits: np.ndarray
    edges: np.ndarray
    score: float
    stability: float
    point: np.ndarray
    crop: tuple[int, int, int, int]


def segment_all(network: Any, frame: np.ndarray, session: Any, **options: Any) -> list[Segment]:
    """All masks of a picture (H,W,3); `session` is its `ImageSession`, used for the crop that is the whole picture."""
    known = {f.name for f in fields(Settings)}
    if set(options) - known:
        unknown = ", ".join(sorted(set(options) - known))
        raise UserError(f"no such option: {unknown}; options: {', '.join(sorted(known))}")
    settings = Settings(**options)
    size, found = frame.shape[:2], []
    crops = crop_boxes(size, settings.crop_n_layers, settings.crop_overlap_ratio)
    for crop, layer in crops:
        x0, y0, x1, y1 = crop
        part = session if crop == (0, 0, size[1], size[0]) else type(session)(network, frame[y0:y1, x0:x1].copy())
        found += _crop(part, crop, size, layer, settings)
    if len(crops) > 1:
        small_first = np.array([1 / ((f.crop[2] - f.crop[0]) * (f.crop[3] - f.crop[1])) for f in found])
        found = _keep(found, small_first, settings.crop_nms_thresh)
    return [_segment(f, size) for f in found]


def grid(side: int) -> np.ndarray:
    """(side*side, 2) x, y in 0..1: the centres of a grid of cells, row by row."""
    steps = np.linspace(1 / (2 * side), 1 - 1 / (2 * side), side)
    return np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[tuple[int, int, int, int], int]]:
    """(box, layer): the whole picture, then 2^n x 2^n overlapping crops for every layer n."""
    height, width = size
    boxes = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / count))
        across, down = (math.ceil((overlap * (count - 1) + n) / count) for n in (width, height))
        for i, j in product(range(count), range(count)):
            x, y = int((across - overlap) * i), int((down - overlap) * j)
            boxes.append(((x, y, min(x + across, width), min(y + down, height)), layer))
    return boxes


def _crop(
    session: Any, crop: tuple[int, int, int, int], size: tuple[int, int], layer: int, settings: Settings
) -> list[_Found]:
    """Masks of one crop, none of them twice."""
    side = int(settings.points_per_side / settings.crop_n_points_downscale_factor**layer)
    points = grid(max(1, side)) * np.array(session.size[::-1])
    found = []
    for start in range(0, len(points), settings.points_per_batch):
        found += _batch(session, points[start : start + settings.points_per_batch], crop, size, settings)
    return _keep(found, np.array([f.score for f in found]), settings.box_nms_thresh)


def _batch(
    session: Any, points: np.ndarray, crop: tuple[int, int, int, int], size: tuple[int, int], settings: Settings
) -> list[_Found]:
    clicks = [session._network.clicks(p[None], np.ones(1), session.size, False) for p in points]
    logits, scores = session.decode(clicks, [None] * len(clicks), settings.multimask_output)
    each = logits.shape[1]
    logits, scores = logits.reshape(-1, *logits.shape[2:]), scores.reshape(-1)
    if settings.use_m2m:
        again = [c for c in clicks for _ in range(each)]
        logits, scores = (x[:, 0] for x in session.decode(again, list(logits.clip(-32, 32)), False))
    found = []
    for i in np.flatnonzero(scores > settings.pred_iou_thresh) if settings.pred_iou_thresh > 0 else range(len(scores)):
        full = session.upsample(without_small_regions(logits[i], settings.min_mask_region_area)[None])[0]
        lower = np.count_nonzero(full > -settings.stability_score_offset)
        stability = np.count_nonzero(full > settings.stability_score_offset) / lower if lower else 0.0
        mask = full > 0
        if stability < settings.stability_score_thresh or _cut_off(edges := _edges(mask), crop, size):
            continue
        whole = np.zeros(size, bool)
        whole[crop[1] : crop[3], crop[0] : crop[2]] = mask
        found.append(
            _Found(
                np.packbits(whole),
                edges + np.array([*crop[:2], *crop[:2]]),
                float(scores[i]),
                float(stability),
                points[i // each] + np.array(crop[:2]),
                crop,
            )
        )
    return found


def _edges(mask: np.ndarray) -> np.ndarray:
    """First and last pixel as x0, y0, x1, y1, inclusive; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])


def _cut_off(edges: np.ndarray, crop: tuple[int, int, int, int], size: tuple[int, int]) -> bool:
    edges = edges + np.array([*crop[:2], *crop[:2]])
    near_crop = np.abs(edges - np.array(crop)) <= NEAR
    near_picture = np.abs(edges - np.array([0, 0, size[1], size[0]])) <= NEAR
    return bool((near_crop & ~near_picture).any())


def _keep(found: list[_Found], scores: np.ndarray, overlap: float) -> list[_Found]:
    if not found:
        return found
    return [found[i] for i in suppress(np.stack([f.edges for f in found]), scores, overlap)]


def _segment(found: _Found, size: tuple[int, int]) -> Segment:
    mask = np.unpackbits(found.bits, count=size[0] * size[1]).reshape(size).astype(bool)
    x0, y0, x1, y1 = (int(v) for v in found.edges)
    return Segment(
        mask,
        (x0, y0, x1 + 1, y1 + 1),
        int(mask.sum()),
        found.score,
        found.stability,
        tuple(found.point.tolist()),
        found.crop,
    )
