"""Preprocessing of frames and upsampling of masks on the device, by compiled kernels, one launch each.

A frame crosses the bus as bytes (2.8 MB for 720p) instead of as normalised floats (12.6 MB at 1024 px), or not at all
if it is on the device already; a mask comes back as bits. Results equal those of `preprocess.py` and `upsample.py` to
the last bit of every byte and mask (`tests/kernels/test_preprocess.py`, `tests/kernels/test_postprocess.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..bundle.manifest import TensorSpec
from ..device.array import DeviceArray
from ..device.cubin import BoundLaunches, Kernels
from ..device.cuda import Cuda
from ..device.kernels import plan, reference
from .preprocess import Normalization
from .upsample import MaskUpsampler

ALIGNMENT = 16
"""Bytes, of every array that a compiled kernel is given. Another library's view may lack it and is copied."""


class DeviceImages:
    """Both operations for one size of video. Everything is allocated here, nothing per frame."""

    def __init__(
        self,
        device: Cuda,
        kernels: Kernels,
        source_hw: tuple[int, int],
        resized_hw: tuple[int, int],
        image_size: int,
        low_side: int,
        mean: Sequence[float],
        std: Sequence[float],
        objects: int,
    ) -> None:
        self._device, self._kernels = device, kernels
        self.source_hw, self._resized_hw, self._image_size, self._low_side = source_hw, resized_hw, image_size, low_side
        self._frame = device.empty((*source_hw, 3), "uint8")
        self._table = device.constant(Normalization.of(mean, std).table_cv)
        rows, columns = (reference.pillow_taps(a, b) for a, b in zip(source_hw, resized_hw, strict=True))
        self._num_taps = (rows[1].shape[1], columns[1].shape[1])
        self._rows, self._columns = self._constants(rows), self._constants(columns)
        upsampler = MaskUpsampler(low_side, image_size, resized_hw, source_hw)
        self._mask_rows = self._constants(reference.mask_taps(upsampler.rows))
        self._mask_columns = self._constants(reference.mask_taps(upsampler.columns))
        self._zeros = device.constant(np.zeros((objects, 5), np.int32))
        self._bound: dict[tuple[int, ...], BoundLaunches] = {}

    def _constants(self, taps: tuple[np.ndarray, np.ndarray]) -> tuple[DeviceArray, DeviceArray]:
        first, weight = taps
        return self._device.constant(first), self._device.constant(weight)

    def results(self) -> list[TensorSpec]:
        """Return the specs of the outputs of `postprocess`, per object."""
        height, width = self.source_hw
        return [
            TensorSpec("stats", "int32", ("objects", 5)),
            TensorSpec("packed", "uint8", ("objects", -(-height * width // 8))),
        ]

    def preprocess(self, frame: Any, out: DeviceArray) -> None:
        """Enqueue uint8 (H,W,3), on the host or a `DeviceArray` -> pixels (3,I,I)."""
        if isinstance(frame, DeviceArray) and frame.ptr % ALIGNMENT == 0:
            self._bind_preprocess(frame, out).run(self._device.stream)  # the next frame may have another address
            return
        if isinstance(frame, DeviceArray):
            self._device.copy(frame, self._frame)
        else:
            host = self._device.staging(self._frame)
            np.copyto(host, frame)
            self._device.upload(host, self._frame)
        key = (self._frame.ptr, out.ptr)
        if key not in self._bound:
            self._bound[key] = self._bind_preprocess(self._frame, out)
        self._bound[key].run(self._device.stream)

    def _bind_preprocess(self, frame: DeviceArray, out: DeviceArray) -> BoundLaunches:
        taps = (self._rows, self._columns, self._table, out)
        sizes = (self.source_hw, self._resized_hw, self._image_size, self._num_taps)
        return self._kernels.bind(plan.preprocess(frame, *taps, *sizes))

    def postprocess(self, low: DeviceArray, packed: DeviceArray, stats: DeviceArray) -> None:
        """Enqueue low_res_logits (n,s,s) float32 -> packed masks (n, bytes) and stats (n,5)."""
        n = low.shape[0]
        key = (low.ptr, packed.ptr, stats.ptr, n)
        if key not in self._bound:
            outputs = (packed, stats, n, self._low_side, self.source_hw)
            self._bound[key] = self._kernels.bind(plan.postprocess(low, self._mask_rows, self._mask_columns, *outputs))
        self._device.copy(self._zeros[:n], stats)
        self._bound[key].run(self._device.stream)

    def unpack(self, packed: np.ndarray, stats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return masks (n,H,W) bool and boxes (n,4) float32 of downloaded outputs of `postprocess`."""
        height, width = self.source_hw
        masks = np.unpackbits(packed, axis=1, count=height * width).view(bool).reshape(len(packed), height, width)
        boxes: np.ndarray = plan.boxes(stats, self.source_hw)[:, 1:].astype(np.float32)
        return masks, boxes
