"""Encodings of frames that are expected next, made on the cores that the frame before them leaves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from .base import Array
from .workers import WorkAhead, Workers

Slot = TypeVar("Slot")
"""What a frame is encoded into."""


class FramesAhead(Generic[Slot]):
    """Frames that have begun, at most as many as there are slots, in the order in which they are expected."""

    def __init__(self, workers: Workers, new_slot: Callable[[], Slot], count: int) -> None:
        """`new_slot` allocates one of `count` slots."""
        self._works, self.beside = WorkAhead(workers), workers.beside
        self._new_slot, self._count = new_slot, count
        self._begun: deque[tuple[np.ndarray, Slot]] = deque()
        self._spare = deque(new_slot() for _ in range(count))
        self._kind: object = None
        """Shape and type of the frame that was taken last."""

    @property
    def is_useful(self) -> bool:
        """Whether any frame may begin."""
        return self._count > 0

    def start(self, frames: Sequence[object], encode: Callable[[Slot, np.ndarray], None]) -> None:
        """Begin with the frames that come next, of which the first ones may have begun."""
        for frame in frames[len(self._begun) : self._count]:
            if not isinstance(frame, np.ndarray) or (frame.shape, frame.dtype) != self._kind:
                return  # converted or refused when it is due
            slot = self._spare.popleft()
            self._works.start(partial(encode, slot, frame))
            self._begun.append((frame, slot))

    def take(self, frame: Array, instead: Slot | None = None) -> Slot | None:
        """Return the encoding of the next frame; None if it has not begun. Raises its error.

        It is valid until `start`; or for good, where `instead` takes its place.
        """
        self._kind = frame.shape, frame.dtype
        if not self._begun or not _is_same(self._begun[0][0], frame):
            self.drop()
            return None
        try:
            self._works.finish_first()
        except BaseException:
            self._begun.popleft()  # after an interrupt, a thread may still write into that slot
            self._spare.append(self._new_slot())
            self.drop()
            raise
        _, slot = self._begun.popleft()
        self._spare.append(slot if instead is None else instead)
        return slot

    def drop(self) -> None:
        """Drop the frames, when no thread works on them."""
        self._works.drop()
        self._spare.extend(slot for _, slot in self._begun)
        self._begun.clear()


def _is_same(frame: np.ndarray, other: object) -> bool:
    """Tell whether two frames are one, or views of the same pixels."""
    return isinstance(other, np.ndarray) and frame.__array_interface__ == other.__array_interface__
