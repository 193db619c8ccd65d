"""Frames as callers give them: arrays of the host, or of other libraries in GPU memory, which are read there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from ..device import interop
from ..device.array import DeviceArray
from ..device.base import Array, Device
from ..device.cubin import Kernels
from ..device.cuda import Cuda
from ..errors import VideoError
from ..media.image_files import check_frame, check_frame_array


@dataclass(frozen=True, slots=True)
class FrameReader:
    """Frames that a device takes; with compiled kernels, also ones in its own memory."""

    device: Device
    kernels: Kernels | None

    def check(self, frame: Any, index: int, size: tuple[int, int] | None) -> Array:
        """Return a frame as uint8 RGB (H,W,3), of the host or of the device.

        Raises VideoError for anything else, for another size than `size`, and for a frame on a GPU without kernels. Of
        one on a GPU it is called under the lock of the device.
        """
        if not interop.is_cuda_array(frame):
            return check_frame(frame, index, size)
        if self.kernels is None:
            raise VideoError(
                f"frame {index}: is on a GPU, and this engine reads frames from the host; load it with a CUDA "
                "backend and kernels='on', or copy the frame"
            )
        try:
            array = interop.as_device_array(frame, cast(Cuda, self.device))
        except VideoError as error:
            raise VideoError(f"frame {index}: {error}") from None
        check_frame_array(array, index, size)
        return array

    def copy(self, frame: Array) -> Array:
        """Return a copy of a frame that `check` has returned, so that its owner may write over it."""
        if not isinstance(frame, DeviceArray):
            return frame.copy()
        copied = self.device.empty(frame.shape, "uint8")
        self.device.copy(frame, copied)
        cast(Cuda, self.device).wait()
        return copied

    def check_image(self, image: Any) -> Array:
        """Return a copy of an image, as `check` does; not under the lock. Raises VideoError."""
        if interop.is_cuda_array(image):
            return self.device.lock.run(lambda: self.copy(self.check(image, 0, None)))
        return self.copy(self.check(image, 0, None))
