"""Stages that take small arrays of the host: these are uploaded side by side, in one copy per call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .base import Array, Device
from .scratch import GrowableBuffers, side_by_side

if TYPE_CHECKING:
    from ..backends.base import Stage


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
        fields, total = side_by_side({name: (array.shape, array.dtype) for name, array in host.items()})
        block = self._blocks.reserve("inputs", total)
        pinned = self._device.staging(block)[:total]
        for name, field in fields.items():
            field.of(pinned)[...] = host[name]
        self._device.upload(pinned, block[:total])
        return {name: field.of(block) for name, field in fields.items()}
