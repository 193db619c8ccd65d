"""Automatic masks of SAM 2: a grid of points, filters, and suppression of duplicates.

The steps, their order and their defaults are those of SAM 2's automatic mask generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np

from ...imaging.masks import suppress
from ...imaging.morphology import without_small_regions
from ...results import Segment
from ...tracking.prompt_inputs import PointInputs
from ..options import AutomaticMaskOptions

Crop = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the image, exclusive."""

CROP_EDGE_MARGIN = 20.0
"""Pixels: a mask this close to the edge of a crop is cut off there and dropped, unless it is the edge of the image."""


class CropPredictor(Protocol):
    """An encoded image or crop; see `Sam2ImagePredictor`."""

    size: tuple[int, int]

    def crop(self, crop: Crop) -> CropPredictor: ...

    def point(self, xy: np.ndarray) -> PointInputs: ...

    def decode(
        self, points: Sequence[PointInputs | None], mask_logits: Sequence[np.ndarray | None], multimask: bool
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def upsample(self, logits: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A mask at image size, packed to bits; `edges` are its first and last pixel in x and y."""

    bits: np.ndarray
    edges: np.ndarray
    score: float
    stability: float
    point: np.ndarray
    crop: Crop


def segment_all(frame: np.ndarray, predictor: CropPredictor, options: AutomaticMaskOptions) -> list[Segment]:
    """Segment everything in an image (H,W,3); `predictor` has it encoded, for the crop that is the whole image."""
    size: tuple[int, int] = frame.shape[:2]
    found: list[_Candidate] = []
    crops = crop_boxes(size, options.crop_n_layers, options.crop_overlap_ratio)
    for crop, layer in crops:
        part = predictor if crop == (0, 0, size[1], size[0]) else predictor.crop(crop)
        found += _segment_crop(part, crop, size, layer, options)
    if len(crops) > 1:
        small_first = np.array([1 / ((f.crop[2] - f.crop[0]) * (f.crop[3] - f.crop[1])) for f in found])
        found = _suppress(found, small_first, options.crop_nms_thresh)
    return [_segment(f, size) for f in found]


def grid(side: int) -> np.ndarray:
    """Return (side*side, 2) x, y in 0..1: the centres of a grid of cells, row by row."""
    steps = np.linspace(1 / (2 * side), 1 - 1 / (2 * side), side)
    return np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)


def crop_boxes(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[tuple[Crop, int]]:
    """Return (box, layer): the whole image, then 2^n x 2^n overlapping crops for every layer n."""
    height, width = size
    boxes: list[tuple[Crop, int]] = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / count))
        across, down = (math.ceil((overlap * (count - 1) + n) / count) for n in (width, height))
        for i, j in product(range(count), range(count)):
            x, y = int((across - overlap) * i), int((down - overlap) * j)
            boxes.append(((x, y, min(x + across, width), min(y + down, height)), layer))
    return boxes


def _segment_crop(
    predictor: CropPredictor, crop: Crop, size: tuple[int, int], layer: int, options: AutomaticMaskOptions
) -> list[_Candidate]:
    """Segment one crop, without duplicates."""
    side = int(options.points_per_side / options.crop_n_points_downscale_factor**layer)
    points = grid(max(1, side)) * np.array(predictor.size[::-1])
    found: list[_Candidate] = []
    for start in range(0, len(points), options.points_per_batch):
        found += _segment_points(predictor, points[start : start + options.points_per_batch], crop, size, options)
    return _suppress(found, np.array([f.score for f in found]), options.box_nms_thresh)


def _segment_points(
    predictor: CropPredictor, points: np.ndarray, crop: Crop, size: tuple[int, int], options: AutomaticMaskOptions
) -> list[_Candidate]:
    clicks = [predictor.point(p) for p in points]
    logits, scores = predictor.decode(clicks, [None] * len(clicks), options.multimask_output)
    each = logits.shape[1]
    logits, scores = logits.reshape(-1, *logits.shape[2:]), scores.reshape(-1)
    if options.use_m2m:
        again = [c for c in clicks for _ in range(each)]
        logits, scores = (x[:, 0] for x in predictor.decode(again, list(logits.clip(-32, 32)), False))
    found = []
    for i in np.flatnonzero(scores > options.pred_iou_thresh) if options.pred_iou_thresh > 0 else range(len(scores)):
        full = predictor.upsample(without_small_regions(logits[i], options.min_mask_region_area)[None])[0]
        lower = np.count_nonzero(full > -options.stability_score_offset)
        stability = np.count_nonzero(full > options.stability_score_offset) / lower if lower else 0.0
        mask = full > 0
        if stability < options.stability_score_thresh or _touches_crop_edge(edges := _edges(mask), crop, size):
            continue
        whole = np.zeros(size, bool)
        whole[crop[1] : crop[3], crop[0] : crop[2]] = mask
        found.append(
            _Candidate(
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
    """Return the first and last pixel as x0, y0, x1, y1, inclusive; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])


def _touches_crop_edge(edges: np.ndarray, crop: Crop, size: tuple[int, int]) -> bool:
    edges = edges + np.array([*crop[:2], *crop[:2]])
    near_crop = np.abs(edges - np.array(crop)) <= CROP_EDGE_MARGIN
    near_image = np.abs(edges - np.array([0, 0, size[1], size[0]])) <= CROP_EDGE_MARGIN
    return bool((near_crop & ~near_image).any())


def _suppress(found: list[_Candidate], scores: np.ndarray, overlap: float) -> list[_Candidate]:
    if not found:
        return found
    return [found[i] for i in suppress(np.stack([f.edges for f in found]), scores, overlap)]


def _segment(found: _Candidate, size: tuple[int, int]) -> Segment:
    mask = np.unpackbits(found.bits, count=size[0] * size[1]).reshape(size).astype(bool)
    x0, y0, x1, y1 = (int(v) for v in found.edges)
    return Segment(
        mask,
        (x0, y0, x1 + 1, y1 + 1),
        int(mask.sum()),
        found.score,
        found.stability,
        (float(found.point[0]), float(found.point[1])),
        found.crop,
    )
