"""First stage of the frames behind a clip, on the cores that its decoding leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...device import frames_ahead
from ...device.base import Array, Device
from .frame_encoder import FrameEncoder

Maps = Mapping[str, Array]
"""Maps of one frame, and its pixels."""


class FramesAhead(frames_ahead.FramesAhead[Maps]):
    """Maps of the first stage of frames that are expected next. A clip copies them when it takes the frame."""

    def __init__(self, encoder: FrameEncoder, device: Device, window: int) -> None:
        """`window`: most frames that have begun, if they are small and there are cores for them."""
        self._encoder = encoder
        super().__init__(device.workers, self._new_maps, window if encoder.num_beside() > 1 else 0)

    def _new_maps(self) -> Maps:
        return {"pixels": self._encoder.new_pixels(1), **self._encoder.new_maps(1)}

    def begin(self, frames: Sequence[object], preprocess: Callable[[Array, Array], None]) -> None:
        """Begin with the frames that come next, of which the first ones may have begun."""

        def encode(maps: Maps, frame: np.ndarray) -> None:
            self._encoder.encode_alone(maps, lambda pixels: preprocess(frame, pixels))

        self.start(frames, encode)

    def take_maps(self, frame: Array) -> Maps | None:
        """Return the maps of the next frame, valid until `begin`; None if it has not begun."""
        taken = self.take(frame)
        return None if taken is None else {name: array[0] for name, array in taken.items()}
