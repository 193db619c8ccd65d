"""Feature maps of the latest frame of a live video, and of those that come next, as far as they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from ..device.base import Array
from ..device.frames_ahead import FramesAhead
from ..device.workers import MAX_OBJECTS_BESIDE
from .requests import DecodeRequest, ImageFeatures
from .step import TrackerNetwork

MAX_AHEAD = 3
"""Most frames that other cores encode while one is decoded."""

Peek = Callable[[], Sequence[object] | None]
"""Returns the frames that come next, as far as they are there; None where that is unknown."""


class LiveFeatures:
    """A frame is encoded when its objects are decoded first, or before, where it was expected."""

    def __init__(self, network: TrackerNetwork) -> None:
        self._network = network
        self.maps = network.new_features()
        """Feature maps of the latest frame, once it is encoded."""
        self.frame: Array | None = None
        """The latest frame while it is not encoded."""
        self._peek: Peek | None = None
        self._is_beside = False
        small = network.has_small_frames and network.device.workers.count > 1
        self._ahead = FramesAhead(network.device.workers, network.new_features, MAX_AHEAD if small else 0)

    def take(self, frame: Array, peek: Peek | None) -> None:
        """Take a frame that was checked. `peek` may show what comes after it."""
        self.frame, self._peek = frame, peek

    def encode(self, requests: Sequence[DecodeRequest]) -> bool:
        """Encode the frame; False if it is encoded. `requests`: what is decoded on it next."""
        if self.frame is None:
            return False
        peek, self._peek = self._peek, None
        coming = peek() if peek is not None and self._ahead.is_useful else None
        self._is_beside = coming is not None and len(requests) <= MAX_OBJECTS_BESIDE
        ahead = self._ahead.take(self.frame, self.maps)
        if ahead is not None:
            self.maps = ahead
        else:
            self._network.encode_image(self.frame, self.maps, self._network.resample["video"], requests)
        self.frame = None
        if coming and self._is_beside:
            self._ahead.start(coming, self._encode_ahead)
        return True

    def _encode_ahead(self, features: ImageFeatures, frame: np.ndarray) -> None:
        self._network.encode_image(frame, features, self._network.resample["video"])

    def beside(self) -> AbstractContextManager[None]:
        """Let objects be decoded on one core, while others encode the frames that come."""
        return self._ahead.beside() if self._is_beside else nullcontext()

    def keep(self) -> None:
        """Copy a frame that is not encoded: its owner may write over it. Forget what shows the frames that come."""
        self._peek = None  # it holds a reader, which ends its thread when it is collected
        if self.frame is not None:
            self.frame = self._network.frame_reader.copy(self.frame)

    def drop(self) -> None:
        """Forget the frames that come, when no thread works on them."""
        self._ahead.drop()
