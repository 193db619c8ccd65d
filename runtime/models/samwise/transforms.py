"""Source frames to network input and decoder outputs to masks, on the host or by compiled kernels on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

import numpy as np

from ...bundle.manifest import TensorSpec
from ...device.array import DeviceArray
from ...device.base import Array, Device
from ...device.cubin import Kernels
from ...device.cuda import Cuda
from ...device.scratch import ReadbackBuffer
from ...imaging.gpu import DeviceFrames, DeviceMasks
from ...imaging.masks import boxes_and_areas
from ...imaging.preprocess import preprocess, resized_size
from ...imaging.upsample import MaskUpsampler
from ...tracking.frames import FrameReader

Read: TypeAlias = Callable[[], dict[str, np.ndarray]]
"""Waits for the outputs of a batch, and returns host views by name, valid until it is called for a later frame."""

Size = tuple[int, int]
"""(height, width)."""


class Transforms(Protocol):
    """Both directions for one size of video."""

    outputs: Sequence[TensorSpec]
    """Arrays that `read` needs in the readback buffer besides the outputs of the decoder."""

    def preprocess_frame(self, frame: Array, pixels: Array) -> None:
        """Enqueue a source frame, uint8 (H,W,3), as network input (3,I,I)."""

    def begin_read(self, readback: ReadbackBuffer) -> Read:
        """Enqueue the copy of the outputs of one batch to the host."""

    def postprocess_masks(self, read: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return masks (n,H,W) bool and boxes (n,4) float32 at source size."""


class ImageSettings:
    """Geometry and normalisation of a bundle's frames; `kernels` transform them, or the host where there are none."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        image_size: int,
        low_res_side: int,
        max_tracks: int,
        device: Device,
        kernels: Kernels | None,
    ) -> None:
        self.image_size, self.low_res_side, self.max_tracks = image_size, low_res_side, max_tracks
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])
        self.device, self.kernels, self.frame_reader = device, kernels, FrameReader(device, kernels)
        self._resize = settings["resize"]

    def transforms(self, size: Size, logits: bool) -> Transforms:
        """Allocate the transforms of a video; `logits`: read low-resolution logits back even if no mask needs them."""
        resized = resized_size(*size, **self._resize)
        if self.kernels is None:
            return HostTransforms(self, size, resized)
        return DeviceTransforms(self, self.kernels, size, resized, logits)


class HostTransforms:
    """Masks are made of the logits, which are therefore always read back."""

    outputs: Sequence[TensorSpec] = ()

    def __init__(self, settings: ImageSettings, size: Size, resized: Size) -> None:
        self._settings, self._resized = settings, resized
        self._upsampler = MaskUpsampler(settings.low_res_side, settings.image_size, resized, size)

    def preprocess_frame(self, frame: Array, pixels: Array) -> None:
        s = self._settings
        host = s.device.staging(pixels)
        preprocess(frame, self._resized, s.image_size, s.mean, s.std, out=host)
        s.device.upload(host, pixels)

    def begin_read(self, readback: ReadbackBuffer) -> Read:
        return readback.begin_read()

    def postprocess_masks(self, read: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        masks = self._upsampler.masks(read["low_res_logits"])
        return masks, boxes_and_areas(masks)[0].astype(np.float32)


class DeviceTransforms:
    """Masks are read back as bits; logits stay on the device unless they are requested."""

    def __init__(self, settings: ImageSettings, kernels: Kernels, size: Size, resized: Size, logits: bool) -> None:
        s = settings
        self._device, self._logits = cast(Cuda, s.device), logits
        self._frame = self._device.empty((*size, 3), "uint8")
        self._frames = DeviceFrames(self._device, kernels, size, resized, s.image_size, s.mean, s.std)
        upsampler = MaskUpsampler(s.low_res_side, s.image_size, resized, size)
        self._masks = DeviceMasks(self._device, kernels, upsampler)
        self._masks.reserve(s.max_tracks)
        self.outputs: Sequence[TensorSpec] = self._masks.fields("objects")

    def preprocess_frame(self, frame: Array, pixels: Array) -> None:
        if isinstance(frame, DeviceArray):
            self._frames.enqueue_given(frame, pixels)
            return
        host = self._device.staging(self._frame)
        np.copyto(host, frame)
        self._device.upload(host, self._frame)
        self._frames.enqueue(self._frame, pixels)

    def begin_read(self, readback: ReadbackBuffer) -> Read:
        arrays = readback.arrays
        self._masks.enqueue(arrays["low_res_logits"], arrays["packed"], arrays["stats"])
        return readback.begin_read(name for name in arrays if self._logits or name != "low_res_logits")

    def postprocess_masks(self, read: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return self._masks.masks(read["packed"]), self._masks.boxes(read["stats"])
