"""Frames of a video by number, for sessions that look at them in any order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import UserError, VideoError
from .frame_iterables import EXPECTED, check_frames, is_source, open_frames, read_picture
from .video_reader import VideoReader

CACHE_BYTES = 256 << 20
"""Decoded frames of a video that are kept, by default: 13 seconds of 360p, 40 frames of 1080p."""


class FrameSequence(Protocol):
    """Frames of a video by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """Return a frame. Raises VideoError."""

    def time(self, index: int) -> float | None:
        """Return the seconds from the first frame at which a frame is shown; None where there are no times."""


def open_sequence(frames: Any, cache_bytes: int) -> FrameSequence:
    """Open frames by number: what `open_video` opens, or an array (T,H,W,3) or list of arrays or image files.

    cache_bytes  size of the decoded frames that may be kept in memory
    Raises VideoError, UserError.
    """
    if not isinstance(cache_bytes, (int, np.integer)) or isinstance(cache_bytes, bool) or cache_bytes < 0:
        raise UserError(f"cache_bytes must be a whole number of 0 or more, not {cache_bytes!r}")
    if is_source(frames):
        with open_frames(frames) as video:
            return _open_source(video, int(cache_bytes))
    check_frames(frames)
    if not hasattr(frames, "__len__") or not hasattr(frames, "__getitem__"):
        raise VideoError(f"frames must be {EXPECTED}, all of them known; not {type(frames).__name__}")
    if not len(frames):
        raise VideoError("the video holds no frame")
    return GivenFrames(tuple(frames) if isinstance(frames, list) else frames)  # the caller may change its list


def _open_source(video: VideoReader, cache_bytes: int) -> FrameSequence:
    if video.live:
        raise VideoError(f"{video.name}: a camera or stream has no end; follow it with Engine.live")
    if video.names is not None:
        return GivenFrames(video.files)
    return SpooledVideo(video, cache_bytes)


class GivenFrames:
    """Arrays, or image files that are read on each access."""

    def __init__(self, frames: Sequence[Any]) -> None:
        self._frames = frames

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Any:
        frame = self._frames[index]
        return read_picture(frame) if isinstance(frame, (str, os.PathLike)) else frame

    def time(self, index: int) -> float | None:
        return None


class SpooledVideo:
    """Frames that are decoded once, and kept in memory up to `cache_bytes`, else all of them in a temporary file."""

    def __init__(self, video: VideoReader, cache_bytes: int) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=cache_bytes)  # noqa: SIM115 - it goes with this object
        self._shape = (*video.size, 3)
        self._times: list[float | None] = []
        for array in video:
            self._file.write(array.data)
            self._times.append(video.time)

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, index: int) -> np.ndarray:
        size = int(np.prod(self._shape))
        self._file.seek(index * size)
        return np.frombuffer(self._file.read(size), np.uint8).reshape(self._shape)

    def time(self, index: int) -> float | None:
        return self._times[index]
