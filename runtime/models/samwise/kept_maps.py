"""Maps that low latency keeps of the latest frames of a track, as they enter hierarchical selective attention."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...bundle.manifest import TensorSpec
from ...device.base import Array, Device
from ...tracking.object_memory import ring_ages


class KeptMaps:
    """One ring of `count` maps for each adapter, and the place of each map in the clip that ends with the next frame.

    `arrays`: inputs of the steps by name, at fixed addresses: `kept_0` (count,h,w,D), ..., `kept_index` (count,).
    """

    def __init__(self, device: Device, tensors: Mapping[str, TensorSpec], count: int) -> None:
        """`tensors`: the inputs `kept_k` of the steps."""
        self._device, self.count = device, count
        # zeros: steps read them while they fill up, for outputs that are not used
        self.arrays = {
            name: device.constant(np.zeros(t.resolve({"kept": count}), t.dtype)) for name, t in tensors.items()
        }
        self.arrays["kept_index"] = device.empty((count,), "int64")
        self._indices = [device.constant(count - 1 - ring_ages(count + f, count)) for f in range(count)]
        self.place(0)

    def place(self, frame: int) -> None:
        """Enqueue the places of the maps of the frames before `frame`, which is the last one of its clip."""
        self._device.copy(self._indices[frame % self.count], self.arrays["kept_index"])

    def keep(self, level: int, frame: int, narrow: Array) -> None:
        """Enqueue a copy of the map (h,w,D) of `frame` over the oldest one."""
        self._device.copy(narrow, self.arrays[f"kept_{level}"][frame % self.count])
