"""Frames of a video by number, for sessions that look at them in any order."""

from __future__ import annotations

import os
import tempfile
import zlib
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from ..errors import UserError, VideoError
from ..results import NO_STAMP, Stamp
from .container import decode_from
from .frame_iterables import EXPECTED, check_frames, check_open, is_source, open_frames, read_picture
from .playlists import address_files
from .source import Frame
from .video_reader import VideoReader
from .video_sources import open_source

CACHE_BYTES = 256 << 20
"""Decoded frames of a video that are kept, by default: 13 seconds of 360p, 40 frames of 1080p."""

SEEK_SECONDS = (0.0, 0.5, 5.0)
"""Seconds before a frame at which decoding begins, tried in turn; the beginning of the file is tried last."""

SKIPPED_FRAMES = 16
"""Most frames that are skipped to go forward, before a seek is tried."""

TOLERANCE = 1e-6
"""Seconds by which two computations of one time may differ."""


class FrameSequence(Protocol):
    """Frames of a video by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """Return a frame. Raises VideoError."""

    def stamp(self, index: int) -> Stamp:
        """Return when a frame is shown."""

    def close(self) -> None:
        """Drop all frames."""


def open_sequence(frames: Any, cache_bytes: int) -> FrameSequence:
    """Open frames by number: what `open_video` opens or has opened, an array (T,H,W,3), a list of arrays or files.

    cache_bytes  size of the decoded frames that may be kept in memory
    Raises VideoError, UserError.
    """
    if not isinstance(cache_bytes, (int, np.integer)) or isinstance(cache_bytes, bool) or cache_bytes < 0:
        raise UserError(f"cache_bytes must be a whole number of 0 or more, not {cache_bytes!r}")
    if is_source(frames):
        with open_frames(frames) as video:
            return _open_source(frames, video, int(cache_bytes))
    if isinstance(frames, VideoReader):
        return _open_source(None, frames, int(cache_bytes))
    check_frames(frames)
    if not hasattr(frames, "__len__") or not hasattr(frames, "__getitem__"):
        raise VideoError(f"frames must be {EXPECTED}, in an array or list; not {type(frames).__name__}")
    if not len(frames):
        raise VideoError("the video holds no frame")
    # the caller may change its list, and the folder in which it works
    return GivenFrames([_absolute(frame) for frame in frames] if isinstance(frames, (list, tuple)) else frames)


def _open_source(path: Any, video: VideoReader, cache_bytes: int) -> FrameSequence:
    if video.live:
        raise VideoError(f"{video.name}: a camera or stream has no end; follow it with Engine.live")
    if path is None:
        return SpooledVideo(video, cache_bytes)
    if video.names is not None:
        return GivenFrames([file.absolute() for file in video.files])
    if video.files and all(file.is_file() for file in video.files):
        is_address = address_files(str(path)) is not None  # else a file, or a pattern or folder with one
        return VideoFile(path if is_address else video.files[0].absolute(), video, cache_bytes)
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

    def stamp(self, index: int) -> Stamp:
        return NO_STAMP

    def close(self) -> None:
        self._frames = ()


class SpooledVideo:
    """Frames of an address or a `VideoReader`, which can be read only once: they are decoded when it is opened.

    They are kept in memory up to `cache_bytes`, else all of them in a temporary file, without compression.
    """

    def __init__(self, video: VideoReader, cache_bytes: int) -> None:
        check_open(video)
        self._file = tempfile.SpooledTemporaryFile(max_size=cache_bytes)  # noqa: SIM115 - it goes with this object
        self._shape = (*video.size, 3)
        self._stamps: list[Stamp] = []
        for array in video:
            self._file.write(array.data)
            self._stamps.append(video.stamp())

    def __len__(self) -> int:
        return len(self._stamps)

    def __getitem__(self, index: int) -> np.ndarray:
        size = int(np.prod(self._shape))
        self._file.seek(index * size)
        return np.frombuffer(self._file.read(size), np.uint8).reshape(self._shape)

    def stamp(self, index: int) -> Stamp:
        return self._stamps[index]

    def close(self) -> None:
        self._file.close()


class FrameIndex:
    """Times and checksums of the frames of a file. Frames are recognized by them, to the bit."""

    def __init__(self) -> None:
        self.stamps: list[Stamp] = []
        self._checksums: list[int] = []

    def add(self, array: np.ndarray, stamp: Stamp) -> None:
        """Add the next frame."""
        self.stamps.append(stamp)
        self._checksums.append(zlib.crc32(array.data))

    def _fits(self, number: int, array: np.ndarray) -> bool:
        return number < len(self.stamps) and self._checksums[number] == zlib.crc32(array.data)

    def from_beginning(self, frames: Iterator[Frame], unchanged: bool) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, array) of the frames of the whole file that are as they were, or all if it is `unchanged`.

        The decoder's threads may conceal damage in another way than before.
        """
        with closing(cast(Generator[Frame], frames)):  # it is in a cycle with its source
            for number, (array, _) in enumerate(frames):
                if unchanged or self._fits(number, array):
                    yield number, array

    def from_time(self, frames: Iterator[Frame], wanted: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, array) of the frames that are right; end where `wanted` passes before any."""
        found, latest = False, _time(self.stamps[wanted]) + TOLERANCE
        for array, stamp in frames:
            time = _time(stamp)
            if not found and time > latest:
                return
            first = bisect_left(self.stamps, time - TOLERANCE, key=_time)
            for number in range(first, bisect_right(self.stamps, time + TOLERANCE, key=_time)):
                if self._fits(number, array):
                    found = True
                    yield number, array


def _time(stamp: Stamp) -> float:
    """Return the time of a frame of a file that has times."""
    assert stamp.time is not None
    return stamp.time


class VideoFile:
    """Frames of a file, decoded when they are needed; those used last are kept, up to `cache_bytes`.

    The file is decoded once when it is opened, for the number of its frames, their times and checksums. A frame is
    decoded again from the key frame before it on, and taken if its time and checksum are right. So frames are those of
    sequential decoding, to the bit, however exact seeking is; in the worst case, as for damaged frames, the file is
    decoded from its beginning.
    """

    def __init__(self, path: Any, video: VideoReader, cache_bytes: int) -> None:
        self._path, self._name, self._cache_bytes = path, video.name, cache_bytes
        self._video_path, self._start = video.path and video.path.absolute(), video.start
        self._files = [file.absolute() for file in video.files]
        self._state = _state(self._files)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._held = 0
        self._index = FrameIndex()
        for number, array in enumerate(video):
            self._index.add(array, video.stamp())
            if self._held + array.nbytes <= cache_bytes:
                self._keep(number, array)
        # iterators refer to the index and not to this object, so that its frames go with it
        self._cursor: Iterator[tuple[int, np.ndarray]] = iter(())
        self._next = 0
        """The cursor delivers no frame before this one."""

    def __len__(self) -> int:
        return len(self._index.stamps)

    def stamp(self, index: int) -> Stamp:
        return self._index.stamps[index]

    def close(self) -> None:
        self._cache.clear()
        self._cursor = iter(())

    def __getitem__(self, index: int) -> np.ndarray:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        for cursor in self._cursors(index):
            self._cursor = cursor
            for number, array in cursor:
                self._next = number + 1
                self._keep(number, array)
                if number == index:
                    return array
                if number > index:
                    break
        raise VideoError(f"{self._name}: frame {index} cannot be read again; the file has changed")

    def _cursors(self, index: int) -> Iterator[Iterator[tuple[int, np.ndarray]]]:
        """Yield iterators that may deliver a frame, the fastest first."""
        if self._next <= index <= self._next + SKIPPED_FRAMES:
            yield self._cursor
        time = self._index.stamps[index].time
        if self._video_path is not None and time is not None:
            for seconds in (time - before for before in SEEK_SECONDS if before < time):
                yield self._index.from_time(decode_from(self._video_path, seconds, self._start), index)
        unchanged = _state(self._files) == self._state
        yield self._index.from_beginning(open_source(self._path).frames, unchanged)

    def _keep(self, number: int, array: np.ndarray) -> None:
        """Keep a frame, and drop those that were used least recently."""
        self._held += array.nbytes if number not in self._cache else 0
        self._cache[number] = array
        while self._held > self._cache_bytes:
            _, dropped = self._cache.popitem(last=False)
            self._held -= dropped.nbytes


def _absolute(frame: Any) -> Any:
    """Return a path of a picture from the root on, and any other frame as it is."""
    return Path(frame).absolute() if isinstance(frame, (str, os.PathLike)) else frame


def _state(files: Sequence[Path]) -> list[tuple[int, int]]:
    """Return what changes when files are written."""
    return [(found.st_mtime_ns, found.st_size) for found in (file.stat() for file in files if file.exists())]
