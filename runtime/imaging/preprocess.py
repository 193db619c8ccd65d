"""Preprocessing on the host: frames to network input.

The Triton kernel `kernels/preprocess.py` is compared with it. Source of the semantics: Pillow's `Image.resize` (what
torchvision's `Resize` does to a PIL image), torchvision's antialiased `Resize` of a float tensor, and PyTorch's
`interpolate(mode="bilinear", align_corners=False)`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError

RULES = ("samwise_video", "square")
RESAMPLE = {"bilinear": 2, "bicubic": 3, "half": 3}
"""Pillow's numbers of its filters; Pillow itself is imported when an image is resized."""

WEIGHT_BITS = 15
"""Weights of PyTorch's resize of bytes are integers below 2 ** 15."""


def resized_size(
    height: int, width: int, rule: str = "samwise_video", short: int = 1020, max: int = 1024
) -> tuple[int, int]:
    """Return (height, width) of a frame inside the square network input; the rest of the square is padding.

    `samwise_video`: the short side becomes `short`; if the long side would pass `max`, it becomes `max` and the short
    side follows. Both divisions truncate, as torchvision's `Resize(short, max_size=max)` does: 480x854 gives 575x1024,
    not 576x1024. `square`: `max` x `max`, the aspect ratio is given up (SAM 2). The parameter names are those of a
    manifest's setting `resize`. Raises UserError for an unknown rule or an empty frame.
    """
    if height < 1 or width < 1:
        raise UserError(f"a frame of {height}x{width} has no pixel; give frames of at least 1x1")
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


@dataclass(frozen=True, slots=True)
class Normalization:
    """`(x / 255 - mean) / std` of every byte: table_cv (3, 256) float32, rounded as the float32 formula rounds."""

    table_cv: np.ndarray

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], half: bool = False) -> Normalization:
        """`half`: mean and standard deviation are applied in float16, as SAM 3 does to the frames of a video."""
        dtype = np.float16 if half else np.float32
        unit = (np.arange(256, dtype=np.float32) / np.float32(255)).astype(dtype)
        table = (unit - np.asarray(mean, dtype)[:, None]) / np.asarray(std, dtype)[:, None]
        return cls(table.astype(np.float32))


def preprocess(
    frame_hwc: np.ndarray,
    resized_hw: tuple[int, int],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    out: np.ndarray | None = None,
    resample: str = "bilinear",
) -> np.ndarray:
    """Convert an RGB frame to network input: (3, image_size, image_size) float32.

    frame_hwc: uint8 (H, W, 3). Resized to `resized_hw` as Pillow does (antialiased; columns, then rows, in fixed point,
    rounded to bytes after each), scaled to [0, 1], normalised, padded with zeros on the right and at the bottom.
    `resample` is `bilinear` (SAMWISE), `bicubic` (SAM 2 video), `float` (SAM 2 images: torchvision's antialiased
    resize of the float tensor, nothing rounded to bytes), `uint8` (SAM 3 images: torchvision's antialiased resize of
    the uint8 tensor) or `half` (SAM 3 video: bicubic, normalised in float16). `out` is reused if given: float32, of
    that shape.
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
        return out
    if resample == "uint8":
        resized = resize_bytes(frame_hwc, resized_hw)
    elif resample in RESAMPLE:
        # one pass per call: Pillow 13 may turn the order of the passes around, and the rounding between them with it
        image = Image.fromarray(np.ascontiguousarray(frame_hwc))
        kind = RESAMPLE[resample]
        resized = np.asarray(image.resize((width, image.height), kind).resize((width, height), kind))
    else:
        raise UserError(f"resample {resample!r} is not one of {', '.join(RESAMPLE)}, float, uint8")
    table_cv = Normalization.of(mean, std, resample == "half").table_cv
    for c in range(3):
        out[c, :height, :width] = table_cv[c].take(resized[..., c])
    return out


def resize_bytes(frame_hwc: np.ndarray, resized_hw: tuple[int, int]) -> np.ndarray:
    """Resize uint8 (H,W,3) as PyTorch's antialiased bilinear `interpolate` of a uint8 tensor does on a CPU.

    Columns, then rows, in fixed point; each pass rounds to bytes. All sums are integers that float32 holds.
    """
    planes = np.ascontiguousarray(frame_hwc.transpose(2, 0, 1), np.float32)
    for axis, (source, target) in ((2, (frame_hwc.shape[1], resized_hw[1])), (1, (frame_hwc.shape[0], resized_hw[0]))):
        matrix, bits = byte_weights(source, target)
        product = planes @ matrix.T if axis == 2 else matrix @ planes
        product += 1 << (bits - 1)
        product *= 1 / (1 << bits)
        planes = np.clip(np.floor(product, out=product), 0, 255, out=product)
    resized: np.ndarray = planes.astype(np.uint8).transpose(1, 2, 0)
    return resized


@functools.lru_cache(maxsize=8)  # the images of a folder have few sizes
def byte_weights(source: int, target: int) -> tuple[np.ndarray, int]:
    """Return the triangle filter of one axis (target, source) as integers in float32, and their fractional bits."""
    scale = source / target
    support = max(scale, 1.0)
    centre = scale * (np.arange(target)[:, None] + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    cell = np.arange(source)
    weights = np.maximum(1 - np.abs((cell - centre + 0.5) / support), 0)
    weights[(cell < first) | (cell >= last)] = 0
    weights /= weights.sum(1, keepdims=True)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << WEIGHT_BITS:
        bits += 1
    return np.floor(weights * (1 << bits) + 0.5).astype(np.float32), bits


def _resize_float(
    frame_hwc: np.ndarray, resized_hw: tuple[int, int], mean: Sequence[float], std: Sequence[float], out: np.ndarray
) -> None:
    """Resize each channel in Pillow's 32-bit float mode: the weights of torchvision's antialiased tensor resize."""
    from PIL import Image

    height, width = resized_hw
    for c in range(3):
        plane = Image.fromarray(frame_hwc[:, :, c].astype(np.float32) / np.float32(255))
        plane = plane.resize((width, height), RESAMPLE["bilinear"])
        out[c, :height, :width] = (np.asarray(plane) - np.float32(mean[c])) / np.float32(std[c])
