"""Mask upsampling: low-resolution logits to logits and masks at the size of the source.

Bilinear resizing is linear and acts on rows and columns apart, so any chain of resizes and crops is two matrices, built
once per size of video: `logits = rows @ low @ columns.T`, equal to the chain up to float32 rounding.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def bilinear_matrix(source: int, target: int) -> np.ndarray:
    """Return the weights (target, source) float64 of one axis of PyTorch's bilinear resize, align_corners false.

    PyTorch rounds coordinates to float32, which at 1920 columns moves a weight by up to 6e-5; so they are rounded here
    at the same places: the scale, and the result of a fused multiply-add whose product is not rounded.
    """
    scale = np.float32(source) / np.float32(target)
    position = (scale.astype(np.float64) * (np.arange(target) + 0.5) - 0.5).astype(np.float32)
    return _interpolation_matrix(source, np.maximum(position, np.float32(0)))


def corner_matrix(source: int, target: int) -> np.ndarray:
    """Return the weights (target, source) float64 of one axis of PyTorch's bilinear resize, align_corners true.

    Coordinates are rounded to float32 at the places where PyTorch rounds them.
    """
    step = np.float32(source - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
    return _interpolation_matrix(source, (step * np.arange(target, dtype=np.float32)).astype(np.float32))


def _interpolation_matrix(source: int, position: np.ndarray) -> np.ndarray:
    """Return the weights of the two samples beside each position, in float64."""
    left = np.minimum(position.astype(np.int64), source - 1)
    right = np.minimum(left + 1, source - 1)
    weight = (position - left.astype(np.float32)).astype(np.float64)
    matrix = np.zeros((len(position), source))
    rows = np.arange(len(position))
    np.add.at(matrix, (rows, left), 1 - weight)
    np.add.at(matrix, (rows, right), weight)
    return matrix


class _BandedMatrix:
    """A banded matrix, cut into blocks of rows that touch few columns: `blocks` = (rows, columns, dense block).

    A row has at most four nonzeros (two bilinear steps), so a dense product would multiply mostly zeros: 12 times the
    work at 256 -> 1920. Blocks of 64 rows keep the product in BLAS and the blocks in the cache.
    """

    __slots__ = ("blocks",)

    def __init__(self, matrix: np.ndarray, height: int = 64) -> None:
        self.blocks: list[tuple[slice, slice, np.ndarray]] = []
        for start in range(0, matrix.shape[0], height):
            rows = slice(start, min(start + height, matrix.shape[0]))
            used = np.flatnonzero(matrix[rows].any(axis=0))
            columns = slice(int(used[0]), int(used[-1]) + 1)
            block = np.ascontiguousarray(matrix[rows, columns], dtype=np.float32)
            self.blocks.append((rows, columns, block))


class SeparableUpsampler:
    """Upsamples by two matrices: `rows` (H, low height), `columns` (W, low width), whose low sides are equal in most
    uses. A logit of 0 is background, or foreground if `zero_is_foreground`."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray, zero_is_foreground: bool = False) -> None:
        self.rows, self.columns, self.zero_is_foreground = rows, columns, zero_is_foreground
        self._rows, self._columns = _BandedMatrix(rows), _BandedMatrix(columns)
        self._compare = np.greater_equal if zero_is_foreground else np.greater
        self._half = np.empty((len(rows), columns.shape[1]), np.float32)
        self._full = np.empty((len(rows), len(columns)), np.float32)

    @property
    def source_hw(self) -> tuple[int, int]:
        """(H, W) of what it makes."""
        return len(self.rows), len(self.columns)

    def logits(self, low_nss: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Upsample low_nss (N, low_side, low_side) float32 to (N, H, W) float32."""
        out = np.empty((len(low_nss), *self._full.shape), np.float32) if out is None else out
        for low, full in zip(low_nss, out, strict=True):
            self._upsample(low, full)
        return out

    def masks(self, low_nss: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Upsample low_nss (N, low_side, low_side) float32 to masks (N, H, W) bool."""
        out = np.empty((len(low_nss), *self._full.shape), bool) if out is None else out
        for low, mask in zip(low_nss, out, strict=True):
            self._upsample(low, self._full)
            self._compare(self._full, 0, out=mask)
        return out

    def _upsample(self, low: np.ndarray, full: np.ndarray) -> None:
        for rows, columns, block in self._rows.blocks:
            np.matmul(block, low[columns], out=self._half[rows])
        for rows, columns, block in self._columns.blocks:
            np.matmul(self._half[:, columns], block.T, out=full[:, rows])


def enlarger(height: int, width: int, factor: int) -> SeparableUpsampler:
    """Return a bilinear upsampler of maps (height, width) by a whole factor. Threads must not share one."""
    return SeparableUpsampler(bilinear_matrix(height, factor * height), bilinear_matrix(width, factor * width))


class MaskUpsampler(SeparableUpsampler):
    """Upsampling as SAM 2 and SAMWISE do it: to (image_size, image_size), crop the padding away, resize the rest to the
    source; both resizes bilinear, align_corners false."""

    def __init__(self, low_side: int, image_size: int, crop_hw: tuple[int, int], source_hw: tuple[int, int]) -> None:
        rows, columns = (
            _two_resizes(low_side, image_size, crop, source) for crop, source in zip(crop_hw, source_hw, strict=True)
        )
        super().__init__(rows, columns)


def square_upsampler(low_side: int, source_hw: tuple[int, int]) -> MaskUpsampler:
    """Return the upsampler of SAM 2, whose input is the whole frame, resized to a square."""
    return MaskUpsampler(low_side, low_side, (low_side, low_side), source_hw)


@lru_cache(maxsize=32)  # the product wakes threads of BLAS, which then spin beside the first frames of a session
def _two_resizes(low_side: int, image_size: int, crop: int, source: int) -> np.ndarray:
    """Return the weights (source, low_side) of one axis: to `image_size`, cropped, to the source."""
    matrix: np.ndarray = bilinear_matrix(crop, source) @ bilinear_matrix(low_side, image_size)[:crop]
    matrix.setflags(write=False)
    return matrix


class CornerAlignedUpsampler(SeparableUpsampler):
    """Upsampling as ReferSAM does it: straight to the source, bilinear, align_corners true; a logit of 0 is foreground.

    The official code stops at the input size. Its grid spans corner to corner, so the source size is the same grid with
    other steps.
    """

    def __init__(self, low_side: int, source_hw: tuple[int, int]) -> None:
        rows, columns = (corner_matrix(low_side, n) for n in source_hw)
        super().__init__(rows, columns, zero_is_foreground=True)
