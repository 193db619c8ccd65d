"""Stages that take small arrays of the host: these are uploaded side by side, in one copy per call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Array, Device
from .scratch import GrowableBuffers

if TYPE_CHECKING:
    from ..backends.base import Stage

ALIGNMENT = 256
"""Bytes; the alignment of CUDA allocations."""


class UploadingStage:
    """A stage on a device that may be given arrays of the host as inputs: points, labels, indices, masks.

    Its block on the device is written again by its next call, in the order of the stream, after this one has read it.
    """

    def __init__(self, stage: Stage, device: Device) -> None:
        self._stage, self.spec = stage, stage.spec
        self._device, self._blocks = device, GrowableBuffers(device)

    def run(self, **arrays: Any) -> None:
        host = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
        self._stage.run(**{**arrays, **self._upload(host)} if host else arrays)

    def _upload(self, host: dict[str, np.ndarray]) -> dict[str, Array]:
        starts, total = {}, 0
        for name, array in host.items():
            starts[name] = total
            total += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        block = self._blocks.reserve("inputs", total)
        pinned, uploaded = self._device.staging(block)[:total], {}
        for name, array in host.items():
            field = slice(starts[name], starts[name] + array.nbytes)
            pinned[field] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            uploaded[name] = block[field].view(array.dtype).reshape(*array.shape)
        self._device.upload(pinned, block[:total])
        return uploaded
