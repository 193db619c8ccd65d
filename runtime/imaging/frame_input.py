"""Network input of one frame: floats made on the host, or bytes on the device that a compiled kernel prepares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np

from ..bundle.manifest import TensorSpec
from ..device.array import DeviceArray
from ..device.base import Array, Device
from ..device.cubin import Kernels
from ..device.cuda import Cuda
from ..device.inputs import Filled, HostArrays, InputBlock
from ..errors import VideoError
from .gpu import MAX_SIZES, DeviceFrames, Size
from .preprocess import preprocess, resized_size


class FrameInput:
    """Uploads frames as the tensor `pixels` (1,3,I,I) of a network."""

    def __init__(
        self,
        inputs: InputBlock,
        tensor: TensorSpec,
        settings: Mapping[str, Any],
        device: Device,
        kernels: Kernels | None,
        resize: Mapping[str, Any] | None = None,
    ) -> None:
        """`resize`: arguments of `resized_size`, None for the whole square of the input."""
        self._inputs, self._resize, self._device = inputs, resize, device
        self._shape, self._dtype = tensor.resolve({"frames": 1}), np.dtype(tensor.dtype)
        self._normalization = tuple(settings["mean"]), tuple(settings["std"])
        self._kernels = kernels if self._dtype == np.float32 else None
        if self._kernels is not None:
            self._pixels = device.empty(self._shape, tensor.dtype)
        self._frames = lru_cache(MAX_SIZES)(self._device_frames)

    def upload(self, frame_hwc: Array, resample: str, ahead: Sequence[tuple[object, HostArrays]] = ()) -> Array:
        """Return the pixels of a frame, uint8 RGB (H,W,3), on the device, valid until the next upload; `resample` as in
        `preprocess`, `ahead` as in `InputBlock.upload`. One that is on the device is read there.

        Raises VideoError for a frame on the device that no kernel of the bundle reads.
        """
        height, width = frame_hwc.shape[:2]
        frames = self._frames((height, width), resample)
        if isinstance(frame_hwc, DeviceArray):
            if frames is None:
                raise VideoError(
                    f"a frame on a GPU: the compiled kernels of this bundle do not resize it ({resample}); run "
                    "`python -m export.kernels` again, or copy the frame to the host"
                )
            self._inputs.upload({}, *ahead)
            frames.enqueue_given(frame_hwc, self._pixels[0])
            return self._pixels
        if frames is not None:
            frame = self._inputs.upload({"frame": frame_hwc}, *ahead)["frame"]
            frames.enqueue(frame, self._pixels[0])
            return self._pixels
        side, resized = self._shape[-1], self._resized((height, width))

        def write(pixels: np.ndarray) -> None:
            preprocess(frame_hwc, resized, side, *self._normalization, out=pixels[0], resample=resample)

        if self._device.workers.is_beside:  # an upload is that of one frame at a time
            write(own := np.empty(self._shape, self._dtype))
            return own
        return self._inputs.upload({"pixels": Filled(self._shape, self._dtype, write)}, *ahead)["pixels"]

    def _resized(self, size: Size) -> Size:
        side = self._shape[-1]
        return (side, side) if self._resize is None else resized_size(*size, **self._resize)

    def _device_frames(self, size: Size, resample: str) -> DeviceFrames | None:
        kernels = self._kernels
        # bundles of earlier versions have the kernel for bytes only
        if kernels is None or not kernels.has("preprocess_float" if resample == "float" else "preprocess"):
            return None
        side, device = self._shape[-1], cast(Cuda, self._device)
        return DeviceFrames(device, kernels, size, self._resized(size), side, *self._normalization, resample)
