"""First stage of the frames behind a clip, on the cores that its decoding leaves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from ...device.base import Array, Device
from ...device.workers import WorkAhead
from .frame_encoder import FrameEncoder


class FramesAhead:
    """Maps of the first stage of frames that are expected next. A clip copies them when it takes the frame."""

    def __init__(self, encoder: FrameEncoder, device: Device, window: int) -> None:
        """`window`: most frames that have begun."""
        self._encoder, self._window = encoder, window
        self._works, self.beside = WorkAhead(device.workers), device.workers.beside
        self._frames: deque[np.ndarray] = deque()
        clip = {"pixels": encoder.new_pixels(window), **encoder.new_maps(window)} if self.is_useful else {}
        self._slots = [{name: a[i : i + 1] for name, a in clip.items()} for i in range(window if clip else 0)]
        self._first = 0
        """Slot of the first frame."""
        self._kind: object = None
        """Shape and type of the frame that was taken last."""

    @property
    def is_useful(self) -> bool:
        """Whether frames are small, and there are cores for them."""
        return self._window > 0 and self._encoder.num_beside() > 1

    def start(self, frames: Sequence[object], preprocess: Callable[[Array, Array], None]) -> None:
        """Begin with the frames that come next, of which the first ones may have begun."""
        for frame in frames[len(self._frames) : self._window]:
            if not isinstance(frame, np.ndarray) or (frame.shape, frame.dtype) != self._kind:
                return  # converted or refused when it is due
            slot = self._slot(len(self._frames))
            self._works.start(partial(self._encoder.encode_alone, slot, partial(preprocess, frame)))
            self._frames.append(frame)

    def _slot(self, place: int) -> Mapping[str, Array]:
        """Return the arrays of the frame at this place among those that have begun."""
        return self._slots[(self._first + place) % self._window]

    def take(self, frame: Array) -> Mapping[str, Array] | None:
        """Return the maps of the next frame, valid until `start`; None if it has not begun."""
        self._kind = frame.shape, frame.dtype
        if not self._frames or not _is_same(self._frames[0], frame):
            self.drop()
            return None
        slot = self._slot(0)
        self._first += 1
        self._frames.popleft()
        try:
            self._works.finish_first()
        except BaseException:
            self.drop()
            raise
        return {name: array[0] for name, array in slot.items()}

    def drop(self) -> None:
        """Drop the frames, when no thread works on them."""
        self._works.drop()
        self._frames.clear()


def _is_same(frame: np.ndarray, other: object) -> bool:
    """Tell whether two frames are one, or views of the same pixels."""
    return isinstance(other, np.ndarray) and frame.__array_interface__ == other.__array_interface__
