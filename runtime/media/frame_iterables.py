"""Frames as sessions take them one by one: arrays, picture files, a `VideoReader`, or a source that it opens."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import VideoError
from .source import Frame
from .video_reader import VideoReader, open_video

MOST_PEEKED = 8
"""Most frames of a list that are looked at before they are taken."""

EXPECTED = "a VideoReader of runtime.open_video(...), a path, or arrays (H,W,3)"


@contextmanager
def opened(frames: Any) -> Iterator[Any]:
    """Open frames that `open_video` is to open, and close them; others stay as they are. Raises VideoError."""
    if is_source(frames):
        with open_frames(frames) as video:
            yield video
    else:
        yield frames


def iterate_frames(frames: Any) -> Iterator[Frame]:
    """Yield frames, with their stamps where they come from a `VideoReader` or from a source that `open_video` takes.

    Raises VideoError.
    """
    if isinstance(frames, VideoReader):
        check_open(frames)
        for array in frames:
            yield Frame(array, frames.stamp())
    elif is_source(frames):
        with open_frames(frames) as video:
            yield from iterate_frames(video)
    else:
        check_frames(frames)
        for frame in _one_by_one(frames):
            yield Frame(read_picture(frame) if isinstance(frame, (str, os.PathLike)) else frame)


class PeekableFrames:
    """Frames of an iterator; `peek` returns those that come next, as `VideoReader.peek` does."""

    def __init__(self, frames: Iterator[Any], peek: Callable[[], Sequence[Any] | None]) -> None:
        self._frames, self.peek = frames, peek

    def __iter__(self) -> Iterator[Any]:
        return self._frames


def peek(frames: Any, taken: int) -> Sequence[Any] | None:
    """Return frames that come next, as far as they are there, after the `taken` ones of `iterate_frames`; None where
    that is unknown, or none comes."""
    if isinstance(frames, (VideoReader, PeekableFrames)):
        return frames.peek()
    known = isinstance(frames, (list, tuple, np.ndarray))
    return list(frames[taken : taken + MOST_PEEKED]) if known and len(frames) > taken else None


def _one_by_one(frames: Any) -> Iterator[Any]:
    """Yield the frames of an iterable. Raises VideoError while another thread runs it, if it is a generator."""
    iterator = iter(frames)
    while True:
        try:
            frame = next(iterator)
        except StopIteration:
            return
        except ValueError as error:
            if str(error) != "generator already executing":
                raise
            raise VideoError(
                "frames: another thread reads this generator now; give each thread one of its own"
            ) from None
        yield frame


def check_open(video: VideoReader) -> None:
    """Raise VideoError for a reader without frames to come."""
    if video.closed:
        raise VideoError(f"{video.name}: this VideoReader is closed, or read to its end; open it again")


def is_source(frames: Any) -> bool:
    """Tell whether `open_video` is to open these frames: a path, an address, the number of a camera."""
    return isinstance(frames, (str, os.PathLike, int)) and not isinstance(frames, bool)


def open_frames(source: Any) -> VideoReader:
    """Open a source that is given where frames are taken. Raises VideoError, which tells what else is."""
    try:
        return open_video(source if isinstance(source, (str, int)) else Path(source))
    except VideoError as error:
        raise VideoError(f"{error} (frames must be {EXPECTED})") from None


def check_frames(frames: Any) -> None:
    """Raise VideoError for what is certainly not a series of frames."""
    dimensions = getattr(frames, "ndim", 4)
    if dimensions != 4:
        hint = "; give one frame to push, or in a list" if dimensions == 3 else ""
        raise VideoError(f"frames must be {EXPECTED}, not one array of shape {tuple(frames.shape)}{hint}")
    if isinstance(frames, (bytes, bytearray, memoryview, Mapping)) or hasattr(frames, "read"):
        raise VideoError(f"frames must be {EXPECTED}, not {type(frames).__name__}")
    if not hasattr(frames, "__iter__") and not hasattr(frames, "__getitem__"):
        raise VideoError(f"frames must be {EXPECTED}, not {type(frames).__name__}")


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a picture of a list of files. Raises VideoError."""
    with open_video([Path(path)]) as picture:
        return next(picture)
