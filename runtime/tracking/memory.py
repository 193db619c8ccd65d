"""The memory of every tracked object, allocated once.

A *row* belongs to one object, a *slot* of it to one remembered frame. Attention does not see the order of its keys, so a
slot is overwritten in place, oldest first, and the number of steps back travels beside it as an `age`: nothing is rolled,
concatenated or copied from frame to frame. Filled slots are always a prefix, so a row that is still filling is read as
`features[row, :filled]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..device.base import Device
from ..errors import UserError


class Row:
    """One object's place in the pool. `frames[s]` is the frame in slot s, `pointer_frames[p]` that of pointer p."""

    __slots__ = ("frames", "index", "pointer_frames")

    def __init__(self, index: int, slots: int, pointers: int) -> None:
        self.index = index
        self.frames = np.full(slots, -1, np.int64)
        self.pointer_frames = np.full(pointers, -1, np.int64)

    @property
    def filled(self) -> int:
        """Slots in use."""
        return int((self.frames >= 0).sum())

    @property
    def filled_pointers(self) -> int:
        return int((self.pointer_frames >= 0).sum())

    def ages(self, frame: int) -> np.ndarray:
        """(filled,) row of the temporal embedding of each slot as seen from `frame`: 0 is the frame just before."""
        return frame - 1 - self.frames[: self.filled]

    def clear(self) -> None:
        self.frames.fill(-1)
        self.pointer_frames.fill(-1)


class MemoryPool:
    """Memory features (objects, slots, tokens, channels) and object pointers (objects, pointers, width).

    Rent a row per object, write it through the views that `slot` and `pointer` return, release it when the object goes.
    """

    def __init__(
        self,
        device: Device,
        objects: int,
        slots: int,
        tokens: int,
        channels: int,
        pointers: int,
        width: int,
        dtype: str = "float32",
    ) -> None:
        self.features = device.empty((objects, slots, tokens, channels), dtype)
        self.pointers = device.empty((objects, pointers, width), dtype)
        self._slots, self._pointers = slots, pointers
        self._free = list(range(objects - 1, -1, -1))
        self.capacity = objects

    def rent(self) -> Row:
        """A cleared row. Raises UserError when all are taken."""
        if not self._free:
            raise UserError(
                f"all {self.capacity} object rows are in use; close a session or load the engine with a "
                f"larger max_objects"
            )
        return Row(self._free.pop(), self._slots, self._pointers)

    def release(self, row: Row) -> None:
        """Give a row back. Its content stays until somebody rents it and writes."""
        if row.index in self._free:
            raise ValueError(f"row {row.index} is free already")
        row.clear()
        self._free.append(row.index)

    @property
    def free(self) -> int:
        return len(self._free)

    def slot(self, row: Row, frame: int) -> Any:
        """(tokens, channels) view to write the memory of `frame` into; overwrites the oldest."""
        at = frame % self._slots
        row.frames[at] = frame
        return self.features[row.index, at]

    def pointer(self, row: Row, frame: int) -> Any:
        """(width,) view to write the pointer of `frame` into."""
        at = frame % self._pointers
        row.pointer_frames[at] = frame
        return self.pointers[row.index, at]
