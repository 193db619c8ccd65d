"""Upsampling of low-resolution mask logits to the size of the source."""

from __future__ import annotations

import numpy as np


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
