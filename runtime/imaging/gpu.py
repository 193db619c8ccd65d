"""Preprocessing of frames and upsampling of masks on the device, by compiled kernels, one launch each.

A frame crosses the bus as bytes (2.8 MB for 720p) instead of as normalised floats (12.6 MB at 1024 px), or not at all
if it is on the device already; a mask comes back as bits. Results equal those of `preprocess.py` and `upsample.py` to
the last bit of every byte and mask (`tests/kernels/test_preprocess.py`, `tests/kernels/test_postprocess.py`).

Every resize is separable: two tables of taps, made on the host once per size of video, are inputs of the kernels, so
one kernel serves the rules of all networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple, cast

import numpy as np

from ..bundle.manifest import TensorSpec
from ..device.array import DeviceArray
from ..device.base import Device
from ..device.cubin import Kernels, LaunchCache
from ..device.cuda import Cuda
from ..device.inputs import InputBlock
from ..device.kernels import plan, reference
from ..device.scratch import OutputBlock
from .preprocess import Normalization, byte_weights
from .upsample import SeparableUpsampler

ALIGNMENT = 16
"""Bytes, of every array that a compiled kernel is given. Another library's view may lack it and is copied."""

MAX_SIZES = 8
"""Sizes of video whose tables are kept."""

Size = tuple[int, int]
"""(height, width)."""
Taps = tuple[np.ndarray, np.ndarray]
"""First source position and weights of one axis."""


def frame_taps(resample: str, source: int, target: int) -> Taps:
    """Return the taps of one axis under a rule of `preprocess`: first source pixel (target,) int32, and weights
    (target, taps), which are int32 in units of 2 ** -22, or float64 for `float`."""
    taps: Taps
    if resample == "float":
        taps = reference.float_taps(source, target)
        return taps
    if resample == "uint8":
        matrix, bits = byte_weights(source, target)
        first, weight = reference.band(matrix)
        return first, weight.astype(np.int32) << (reference.PRECISION_BITS - bits)
    taps = reference.pillow_taps(source, target, "bicubic" if resample == "half" else resample)
    return taps


class DeviceFrames:
    """Frames of one size as network input, under one rule of `preprocess`."""

    def __init__(
        self,
        device: Cuda,
        kernels: Kernels,
        source_hw: Size,
        resized_hw: Size,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        resample: str = "bilinear",
    ) -> None:
        self._device, self._launches = device, LaunchCache(kernels)
        rows, columns = (frame_taps(resample, a, b) for a, b in zip(source_hw, resized_hw, strict=True))
        tables = [Normalization.of(mean, std, resample == "half").table_cv]
        self._plan: Callable[..., list[plan.Launch]] = plan.preprocess
        if resample == "float":
            tables = [np.arange(256, dtype=np.float32) / np.float32(255), np.array([mean, std], np.float32)]
            self._plan = plan.preprocess_float
        self._sizes = source_hw, resized_hw, image_size, (rows[1].shape[1], columns[1].shape[1])
        self._tables = [_constants(device, rows), _constants(device, columns), *_constants(device, tables)]
        self._aligned: DeviceArray | None = None

    def enqueue(self, frame: DeviceArray, out: DeviceArray) -> None:
        """Enqueue uint8 (H,W,3) -> pixels (3,I,I)."""
        planned = partial(self._plan, frame, *self._tables, out, *self._sizes)
        self._launches.run((frame.ptr, out.ptr), planned, self._device.stream)

    def enqueue_given(self, frame: DeviceArray, out: DeviceArray) -> None:
        """Do the same with a frame of the caller, which is kept until it is read."""
        self._device.keep(frame)
        if frame.ptr % ALIGNMENT:
            if self._aligned is None:
                self._aligned = self._device.empty(frame.shape, "uint8")
            self._device.copy(frame, self._aligned)
            frame = self._aligned
        self.enqueue(frame, out)


class MaskBits(NamedTuple):
    """Masks on the host as a device made them: bits (n, bytes) and statistics (n,5)."""

    packed: np.ndarray
    stats: np.ndarray


class DeviceMasks:
    """Masks at the size of a source, as bits, of low-res logits on the device: by the matrices of an upsampler.

    The kernel compares with > 0. Where a logit of 0 is foreground, it is given negated weights and finds the
    background.
    """

    def __init__(self, device: Cuda, kernels: Kernels, upsampler: SeparableUpsampler) -> None:
        self.device, self._launches = device, LaunchCache(kernels)
        self.source_hw: Size = upsampler.source_hw
        self._inverted = upsampler.zero_is_foreground
        rows = -upsampler.rows if self._inverted else upsampler.rows
        self._side = rows.shape[1]
        self._taps = [_constants(device, reference.mask_taps(matrix)) for matrix in (rows, upsampler.columns)]
        self._zeros = device.constant(np.zeros((1, 5), np.int32))

    def fields(self, masks: int | str, prefix: str = "") -> list[TensorSpec]:
        """Return the specs of what `enqueue` writes."""
        height, width = self.source_hw
        return [
            TensorSpec(f"{prefix}stats", "int32", (masks, 5)),
            TensorSpec(f"{prefix}packed", "uint8", (masks, -(-height * width // 8))),
        ]

    def reserve(self, masks: int) -> None:
        """Allocate what a call with as many masks needs."""
        if len(self._zeros) < masks:
            self._zeros = self.device.constant(np.zeros((masks, 5), np.int32))

    def enqueue(self, low: DeviceArray, packed: DeviceArray, stats: DeviceArray) -> None:
        """Enqueue low_res_logits (n,s,s) float32 -> packed masks (n, bytes) and stats (n,5)."""
        n = len(low)
        self.reserve(n)
        self.device.copy(self._zeros[:n], stats)
        self._launches.run(
            (low.ptr, packed.ptr, stats.ptr, n),
            lambda: plan.postprocess(low, *self._taps, packed, stats, n, self._side, self.source_hw),
            self.device.stream,
        )

    def masks(self, packed: np.ndarray) -> np.ndarray:
        """Return masks (n,H,W) bool of downloaded bits."""
        height, width = self.source_hw
        bits = np.unpackbits(packed, axis=1, count=height * width).view(bool).reshape(len(packed), height, width)
        return ~bits if self._inverted else bits

    def boxes(self, stats: np.ndarray) -> np.ndarray:
        """Return boxes (n,4) float32 of downloaded statistics of masks whose logits are above 0."""
        assert not self._inverted, "the statistics are those of the background"
        boxes: np.ndarray = plan.boxes(stats, self.source_hw)[:, 1:].astype(np.float32)
        return boxes


class DeviceUpsampler:
    """`SeparableUpsampler.masks` by a kernel, for logits that the host has changed: an upload, a download, one wait."""

    def __init__(self, masks: DeviceMasks) -> None:
        self._masks, self.source_hw = masks, masks.source_hw
        self._inputs, self._outputs = InputBlock(masks.device), OutputBlock(masks.device)

    def masks(self, low_nss: np.ndarray) -> np.ndarray:
        """Upsample low_nss (N, low_side, low_side) float32 to masks (N, H, W) bool."""
        if not len(low_nss):
            return np.zeros((0, *self.source_hw), bool)
        low = self._inputs.upload({"low": low_nss.astype(np.float32, copy=False)})["low"]
        self._masks.enqueue(low, **self._outputs.reserve(self._masks.fields(len(low_nss)), {}))
        return self._masks.masks(self._outputs.read()["packed"])


def mask_sizes(
    device: Device, kernels: Kernels | None, dtype: str, upsampler: Callable[[Size], SeparableUpsampler]
) -> Callable[[Size], DeviceMasks | None]:
    """Return `DeviceMasks` by size of the source, of logits of a type; None where masks are made on the host."""
    if kernels is None or dtype != "float32":
        return lambda size: None
    return lru_cache(MAX_SIZES)(lambda size: DeviceMasks(cast(Cuda, device), kernels, upsampler(size)))


def upsamplers(
    device: Device, kernels: Kernels | None, upsampler: Callable[[Size], SeparableUpsampler]
) -> Callable[[Size], SeparableUpsampler | DeviceUpsampler]:
    """Return what makes an upsampler of the host's logits for a size of the source; threads must not share one."""
    on_device = mask_sizes(device, kernels, "float32", upsampler)

    def make(size: Size) -> SeparableUpsampler | DeviceUpsampler:
        masks = on_device(size)
        return upsampler(size) if masks is None else DeviceUpsampler(masks)

    return make


def _constants(device: Cuda, arrays: Sequence[np.ndarray]) -> tuple[DeviceArray, ...]:
    return tuple(map(device.constant, arrays))
