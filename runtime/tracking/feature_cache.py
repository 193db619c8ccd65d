"""Feature maps of the frames of a video whose frames are known."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from ..device.base import Array
from ..device.workers import MAX_OBJECTS_BESIDE, WorkAhead
from ..errors import VideoError
from ..media.random_access import FrameSequence
from .requests import DecodeRequest, ImageFeatures
from .step import TrackerNetwork

CACHED_FRAMES = 4
"""Frames whose features are kept for the next prompt: some 20 MB each at 1024 pixels."""


class FeatureCache:
    """Features of a video's frames by frame number; those of the latest few frames are kept."""

    def __init__(self, network: TrackerNetwork, frames: FrameSequence) -> None:
        self._network, self._frames = network, frames
        self.size: tuple[int, int] = network.frame_reader.check(frames[0], 0, None).shape[:2]
        self._cache: OrderedDict[int, ImageFeatures] = OrderedDict()
        self._spare: list[ImageFeatures] = []
        self._ahead: deque[int] = deque()
        """Frames that other threads encode, in this order."""
        self._works = WorkAhead(network.device.workers)

    def __getitem__(self, frame: int) -> ImageFeatures:
        return self.get(frame)

    @property
    def num_ahead(self) -> int:
        """How many frames are encoded by other threads while one is decoded."""
        return CACHED_FRAMES - 1 if self._network.has_small_frames and self._network.device.workers.count > 1 else 0

    def beside(self, num_objects: int) -> AbstractContextManager[None]:
        """Let a frame be decoded on one core, beside those that are encoded; many objects take all cores."""
        one = self.num_ahead and num_objects <= MAX_OBJECTS_BESIDE
        return self._network.device.workers.beside() if one else nullcontext()

    def get(
        self, frame: int, requests: Sequence[DecodeRequest] | None = None, next_frames: Sequence[int] = ()
    ) -> ImageFeatures:
        """Return the features of a frame; `requests`: what is decoded on it next. Other threads may begin with the
        `next_frames`."""
        next_frames = next_frames[: self.num_ahead]
        if not set(self._ahead) <= {frame, *next_frames}:
            self._drop_ahead()
        if frame not in self._cache:
            image = self._read(frame)
            features = self._allocate()
            if next_frames:
                self._start(frame, image, features)
            else:
                self._network.encode_image(image, features, self._network.resample["video"], requests)
            self._cache[frame] = features
        self._cache.move_to_end(frame)
        self._read_ahead(next_frames)
        try:
            while frame in self._ahead:
                self._works.finish_first()
                self._ahead.popleft()
        except BaseException:
            self._drop_ahead()
            raise
        return self._cache[frame]

    def _read(self, frame: int) -> Array:
        return self._network.frame_reader.check(self._frames[frame], frame, self.size)

    def _allocate(self) -> ImageFeatures:
        """Return memory for the features of a frame, maybe of the one that was not used for longest."""
        while len(self._cache) >= CACHED_FRAMES:
            oldest = next((known for known in self._cache if known not in self._ahead), None)
            if oldest is None:
                self._drop_ahead()
            else:
                self._spare.append(self._cache.pop(oldest))
        return self._spare.pop() if self._spare else self._network.new_features()

    def _start(self, frame: int, image: Array, features: ImageFeatures) -> None:
        self._works.start(partial(self._network.encode_image, image, features, self._network.resample["video"]))
        self._ahead.append(frame)

    def _read_ahead(self, frames: Sequence[int]) -> None:
        """Let other threads begin with the frames that come next."""
        for frame in frames:
            if frame in self._cache:
                continue
            try:
                image = self._read(frame)
            except VideoError:  # raised again when that frame is due
                return
            self._cache[frame] = features = self._allocate()
            self._start(frame, image, features)

    def _drop_ahead(self) -> None:
        """Drop the frames that other threads encode."""
        self._works.drop()
        for frame in self._ahead:
            self._spare.append(self._cache.pop(frame))
        self._ahead.clear()

    def close(self) -> None:
        """Drop the features and the frames."""
        self._drop_ahead()
        self._cache.clear()
        self._spare.clear()
        self._frames.close()
