"""Frames in and masks out on the device, one launch each: the kernels of a bundle in place of what `ops` does on a CPU.

A frame crosses the bus as bytes (2.8 MB for 720p) instead of as normalised floats (12.6 MB at 1024 px), or not at all when
the caller has it on the device; a mask comes back as bits. Results equal those of `ops` to the last bit of every byte
and mask (`tests/test_kernel_preprocess.py`, `tests/test_kernel_postprocess.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..bundle.manifest import TensorSpec
from ..device.array import DeviceArray
from ..device.cubin import Kernels
from ..device.kernels import kernel_plans
from .preprocess import Normalization
from .upsample import MaskUpsampler

log = logging.getLogger("runtime")

ALIGNMENT = 16
"""Of every array that a compiled kernel is given; a view into another library's array may lack it and is copied."""


class DeviceImages:
    """Both operations for one size of video. Everything is allocated here, nothing per frame."""

    def __init__(
        self,
        device: Any,
        kernels: Kernels,
        source_hw: tuple[int, int],
        resized_hw: tuple[int, int],
        image_size: int,
        low_side: int,
        mean: Sequence[float],
        std: Sequence[float],
        objects: int,
    ) -> None:
        self._plan, reference = kernel_plans()
        self._device, self._kernels = device, kernels
        self.source_hw, self._resized_hw, self._image_size, self._low_side = source_hw, resized_hw, image_size, low_side
        constant = device.constant
        self._frame = device.empty((*source_hw, 3), "uint8")
        self._table = constant(Normalization.of(mean, std).table_cv)
        self._bits = reference.PRECISION_BITS
        rows, columns = (reference.pillow_taps(a, b) for a, b in zip(source_hw, resized_hw))
        self._taps = (rows[1].shape[1], columns[1].shape[1])
        self._rows, self._columns = (tuple(map(constant, taps)) for taps in (rows, columns))
        upsampler = MaskUpsampler(low_side, image_size, resized_hw, source_hw)
        masks = (reference.mask_taps(m) for m in (upsampler.rows, upsampler.columns))
        self._mask_rows, self._mask_columns = (tuple(map(constant, taps)) for taps in masks)
        self._mask_taps = reference.MASK_TAPS
        self._bound: dict[tuple[int, ...], Any] = {}
        self._zeros = constant(np.zeros((objects, 5), np.int32))

    def results(self) -> list[TensorSpec]:
        """What `postprocess` writes, per object."""
        height, width = self.source_hw
        return [
            TensorSpec("stats", "int32", ("objects", 5)),
            TensorSpec("packed", "uint8", ("objects", -(-height * width // 8))),
        ]

    def preprocess(self, frame: Any, out: DeviceArray) -> None:
        """uint8 (H,W,3), on the host or a `DeviceArray` -> pixels (3,I,I)."""
        if isinstance(frame, DeviceArray) and frame.ptr % ALIGNMENT == 0:
            self._launch(frame, out).run(self._device.stream)  # its address may be another one next time
            return
        if isinstance(frame, DeviceArray):
            self._device.copy(frame, self._frame)
        else:
            host = self._device.staging(self._frame)
            np.copyto(host, frame)
            self._device.upload(host, self._frame)
        key = (self._frame.ptr, out.ptr)
        if key not in self._bound:
            self._bound[key] = self._launch(self._frame, out)
        self._bound[key].run(self._device.stream)

    def _launch(self, frame: DeviceArray, out: DeviceArray) -> Any:
        return self._kernels.bind(
            self._plan.preprocess(
                frame,
                self._rows,
                self._columns,
                self._table,
                out,
                self.source_hw,
                self._resized_hw,
                self._image_size,
                self._taps,
                self._bits,
            )
        )

    def postprocess(self, low: DeviceArray, packed: DeviceArray, stats: DeviceArray) -> None:
        """low_res_logits (n,s,s) float32 -> packed masks (n, bytes) and stats (n,5)."""
        n = low.shape[0]
        key = (low.ptr, packed.ptr, stats.ptr, n)
        if key not in self._bound:
            self._bound[key] = self._kernels.bind(
                self._plan.postprocess(
                    low,
                    self._mask_rows,
                    self._mask_columns,
                    packed,
                    stats,
                    n,
                    self._low_side,
                    self.source_hw,
                    self._mask_taps,
                )
            )
        self._device.copy(self._zeros[:n], stats)
        self._bound[key].run(self._device.stream)

    def unpack(self, packed: np.ndarray, stats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Host side of `postprocess`: masks (n,H,W) bool and boxes (n,4) float32 as `Result` has them."""
        height, width = self.source_hw
        masks = np.unpackbits(packed, axis=1, count=height * width).view(bool).reshape(len(packed), height, width)
        return masks, self._plan.boxes(stats, self.source_hw)[:, 1:].astype(np.float32)
