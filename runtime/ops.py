"""Frames into network input, logits into masks: the one door to image operations.

Everything here has a Triton twin in `kernels/` (one launch each, on the device); this file holds what a CPU does, and is
what the kernels are held against. Nothing allocates per frame more than its result.

Source of the semantics: Pillow's `Image.resize` (what torchvision's `Resize` does to a PIL image), torchvision's
antialiased `Resize` of a float tensor, and PyTorch's `interpolate(mode="bilinear", align_corners=False)`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import BundleError, UserError

log = logging.getLogger("runtime")

RULES = ("samwise_video", "square")
RESAMPLE = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers of its filters; Pillow itself is imported when a picture is resized."""


def resized_size(
    height: int, width: int, rule: str = "samwise_video", short: int = 1020, max: int = 1024
) -> tuple[int, int]:
    """(height, width) of a frame inside the square network input; the rest of the square is padding.

    `samwise_video`: the short side becomes `short`; if the long side would pass `max`, it becomes `max` and the short
    side follows. Both divisions truncate, as torchvision's `Resize(short, max_size=max)` does, so 480x854 gives 575x1024
    and not 576x1024. `square`: `max` x `max`, the aspect ratio is given up (SAM 2). The parameter names are those of a
    manifest's `settings["resize"]`. Raises UserError for an unknown rule or an empty frame.
    """
    if height < 1 or width < 1:
        raise UserError(f"a frame of {height}x{width} holds no pixel; give frames of at least 1x1")
    if rule == "square":
        return max, max
    if rule != "samwise_video":
        raise UserError(f"resize rule {rule!r} is not one of {', '.join(RULES)}; export the bundle again")
    small, large = sorted((height, width))
    new_small, new_large = short, int(short * large / small)
    if new_large > max:
        new_small, new_large = int(max * new_small / new_large), max
    new_small = new_small or 1  # a strip of 1 x 5000 still has a row
    return (new_small, new_large) if height <= width else (new_large, new_small)


def kernel_plans():
    """`plan` and `reference` of `kernels/`: what to launch and the formulas behind it. Needs no Triton."""
    from .kernels import plan, reference

    return plan, reference


def kernel_stages(bundle, backend, kernels, mode: str, objects: int) -> dict:
    """Stages of the bundle whose attention its compiled kernels take, by name: all that are cut for it where `mode` is
    `on`, none otherwise, which is said in one line. Which is faster has yet to be measured on a GPU; until then `auto`
    runs the whole graphs. Raises BundleError for cuts that are not what they should be, BackendError for a kernel that is
    missing."""
    cut = bundle.manifest.settings.get("cuts")
    if not cut or kernels is None:
        return {}
    if not isinstance(cut, dict):
        raise BundleError(
            f"{bundle.folder}: settings.cuts must be an object, not {type(cut).__name__}; export it again"
        )
    if mode != "on":
        log.info("whole graphs for %s; --kernels on lets the compiled kernels take their attention", ", ".join(cut))
        return {}
    from . import cuts

    return cuts.load(bundle, backend, kernels, objects)


@dataclass(frozen=True, slots=True)
class Normalization:
    """`(x / 255 - mean) / std` of every byte value: table_cv (3, 256) float32, rounded as the float32 formula rounds."""

    table_cv: np.ndarray

    @classmethod
    def of(cls, mean, std) -> Normalization:
        unit = np.arange(256, dtype=np.float32) / np.float32(255)
        return cls((unit - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None])


def preprocess(
    frame_hwc: np.ndarray,
    resized_hw: tuple[int, int],
    image_size: int,
    mean,
    std,
    out: np.ndarray | None = None,
    resample: str = "bilinear",
) -> np.ndarray:
    """One RGB frame as network input: (3, image_size, image_size) float32.

    frame_hwc: uint8 (H, W, 3). Resized to `resized_hw` as Pillow does (antialiased; columns, then rows, in fixed point,
    rounded to bytes after each), scaled to [0, 1], normalised, padded with zeros on the right and at the bottom. `resample` is
    `bilinear` (SAMWISE), `bicubic` (SAM 2 video) or `float` (SAM 2 pictures: torchvision's antialiased resize of the
    float tensor, nothing rounded to bytes). `out` is reused when given: it must be float32, of that shape.
    Raises UserError when the frame is not uint8 RGB or `resample` is unknown.
    """
    if frame_hwc.dtype != np.uint8 or frame_hwc.ndim != 3 or frame_hwc.shape[2] != 3:
        raise UserError(
            f"a frame must be uint8 (height, width, 3), not {frame_hwc.dtype} {frame_hwc.shape}; convert it to RGB"
        )
    from PIL import Image

    height, width = resized_hw
    if out is None:
        out = np.zeros((3, image_size, image_size), np.float32)
    else:
        out[:, height:] = 0
        out[:, :height, width:] = 0
    if resample == "float":
        _resize_float(frame_hwc, resized_hw, mean, std, out)
    elif resample in RESAMPLE:
        # one pass per call: Pillow 13 may turn the order of the passes around, and the rounding between them with it
        picture = Image.fromarray(np.ascontiguousarray(frame_hwc))
        picture = picture.resize((width, picture.height), RESAMPLE[resample]).resize(
            (width, height), RESAMPLE[resample]
        )
        table_cv = Normalization.of(mean, std).table_cv
        for c, plane in enumerate(picture.split()):
            out[c, :height, :width] = table_cv[c].take(np.asarray(plane))
    else:
        raise UserError(f"resample {resample!r} is not one of {', '.join(RESAMPLE)}, float")
    return out


def _resize_float(frame_hwc: np.ndarray, resized_hw: tuple[int, int], mean, std, out: np.ndarray) -> None:
    """torchvision's antialiased tensor resize has Pillow's weights and no rounding: Pillow's own 32-bit float mode."""
    from PIL import Image

    height, width = resized_hw
    for c in range(3):
        plane = Image.fromarray(frame_hwc[:, :, c].astype(np.float32) / np.float32(255))
        plane = plane.resize((width, height), RESAMPLE["bilinear"])
        out[c, :height, :width] = (np.asarray(plane) - np.float32(mean[c])) / np.float32(std[c])


def bilinear_matrix(source: int, target: int) -> np.ndarray:
    """(target, source) float64 weights of one axis of PyTorch's bilinear resize, align_corners false, no antialias.

    PyTorch rounds coordinates to float32, which at 1920 columns moves a weight by up to 6e-5; so they are rounded here
    at the same places: the scale, and the result of a fused multiply-add whose product is not rounded.
    """
    scale = np.float32(source) / np.float32(target)
    position = (scale.astype(np.float64) * (np.arange(target) + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    left = np.minimum(position.astype(np.int64), source - 1)
    right = np.minimum(left + 1, source - 1)
    weight = (position - left.astype(np.float32)).astype(np.float64)
    matrix = np.zeros((target, source))
    rows = np.arange(target)
    np.add.at(matrix, (rows, left), 1 - weight)
    np.add.at(matrix, (rows, right), weight)
    return matrix


class _Bands:
    """A banded matrix, cut into blocks of rows that touch few columns: `blocks` = (rows, columns, dense block).

    A row has at most four nonzeros (two bilinear steps), so a dense product would multiply mostly zeros: 12 times the
    work at 256 -> 1920. Blocks of 64 rows keep the product in BLAS and the blocks in the cache.
    """

    __slots__ = ("blocks", "shape")

    def __init__(self, matrix: np.ndarray, height: int = 64) -> None:
        self.shape = matrix.shape
        self.blocks = []
        for start in range(0, matrix.shape[0], height):
            rows = slice(start, min(start + height, matrix.shape[0]))
            used = np.flatnonzero(matrix[rows].any(axis=0))
            columns = slice(int(used[0]), int(used[-1]) + 1)
            block = np.ascontiguousarray(matrix[rows, columns], dtype=np.float32)
            self.blocks.append((rows, columns, block))


class MaskUpsampler:
    """Low-resolution logits to masks at the source size, for one size of video.

    The reference resizes (low_side, low_side) to (image_size, image_size), crops the padding away and resizes the rest
    to the source, both times bilinearly. All three steps are linear and act on rows and columns apart, so they are two
    matrices, built once: `logits = rows @ low @ columns.T`. Equal to the two-step result up to float32 rounding.
    """

    def __init__(self, low_side: int, image_size: int, crop_hw: tuple[int, int], source_hw: tuple[int, int]) -> None:
        first = bilinear_matrix(low_side, image_size)
        self.source_hw = tuple(source_hw)
        self.low_side = low_side
        self.rows = bilinear_matrix(crop_hw[0], source_hw[0]) @ first[: crop_hw[0]]
        self.columns = bilinear_matrix(crop_hw[1], source_hw[1]) @ first[: crop_hw[1]]
        self._rows, self._columns = _Bands(self.rows), _Bands(self.columns)
        self._half = np.empty((source_hw[0], low_side), np.float32)
        self._full = np.empty(source_hw, np.float32)

    def logits(self, low_nss: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """low_nss (N, low_side, low_side) float32 -> (N, H, W) float32 at the source size."""
        out = np.empty((len(low_nss), *self.source_hw), np.float32) if out is None else out
        for low, full in zip(low_nss, out):
            self._one(low, full)
        return out

    def masks(self, low_nss: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """low_nss (N, low_side, low_side) float32 -> (N, H, W) bool, true where the logit is positive."""
        out = np.empty((len(low_nss), *self.source_hw), bool) if out is None else out
        for low, mask in zip(low_nss, out):
            self._one(low, self._full)
            np.greater(self._full, 0, out=mask)
        return out

    def _one(self, low: np.ndarray, full: np.ndarray) -> None:
        for rows, columns, block in self._rows.blocks:
            np.matmul(block, low[columns], out=self._half[rows])
        for rows, columns, block in self._columns.blocks:
            np.matmul(self._half[:, columns], block.T, out=full[:, rows])


def boxes_and_areas(masks_nhw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) int32 as x0, y0, x1, y1 and areas (N) int64, in pixels, of masks (N, H, W) bool.

    x1 and y1 are one past the last pixel, so that x1 - x0 is a width; an empty mask has the box 0, 0, 0, 0.
    """
    boxes = np.zeros((len(masks_nhw), 4), np.int32)
    areas = np.zeros(len(masks_nhw), np.int64)
    for n, mask in enumerate(masks_nhw):
        areas[n] = np.count_nonzero(mask)
        if areas[n]:
            rows = np.flatnonzero(mask.any(axis=1))
            top, bottom = int(rows[0]), int(rows[-1]) + 1
            columns = np.flatnonzero(mask[top:bottom].any(axis=0))
            boxes[n] = columns[0], top, columns[-1] + 1, bottom
    return boxes, areas


def pack_mask(mask_hw: np.ndarray) -> np.ndarray:
    """Eight pixels per byte, row-major, first pixel in the highest bit: ceil(H * W / 8) uint8, `np.packbits` order."""
    return np.packbits(mask_hw, axis=None)


def probability(score: np.ndarray | Sequence[float]) -> np.ndarray:
    """Sigmoid of presence logits, float32."""
    return (1.0 / (1.0 + np.exp(-np.clip(np.asarray(score, np.float64), -500, 500)))).astype(np.float32)
