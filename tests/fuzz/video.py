"""Fuzz target `video`: video files, pictures, and folders of pictures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from helpers import example_videos
from runtime.media.video_reader import open_video

from .invariants import InvariantViolation
from .mutations import damaged_bytes
from .targets import Target

SUFFIXES = (".mp4", ".webm", ".png", ".gif", ".ts", ".jpg", ".avi", ".y4m", ".mkv", "", ".tif", ".webp")
FOLDER = 255
"""First byte of an input that is a folder of pictures, separated by `SEPARATOR`."""
SEPARATOR = b"--part--"
WORDS = (
    *b"moov mdat stsd trak avc1 IHDR IDAT acTL fcTL tRNS eXIf RIFF GIF89a".split(),
    *(b"\xff\xd8", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", SEPARATOR),
    b"#EXTM3U\n#EXTINF:1,\n/dev/zero\n",
    b"ffconcat version 1.0\nfile '/dev/zero'\n",
    b"YUV4MPEG2 W0 H0 F0:0\n",
)


def _prepare(data: bytes, inside: Path) -> Callable[[], None]:
    """The first byte chooses the suffix, the rest is the file; or a folder of pictures."""
    kind, content = (data[0], data[1:]) if data else (0, b"")
    if kind == FOLDER:
        path = inside / "folder"
        path.mkdir()
        for i, part in enumerate(content.split(SEPARATOR)[:8]):
            (path / f"{i}.png").write_bytes(part)
    else:
        path = inside / f"video{SUFFIXES[kind % len(SUFFIXES)]}"
        path.write_bytes(content)
    return functools.partial(_read, path)


def _read(path: Path) -> None:
    """Read up to 32 frames; they are pictures of the size, number and rate that are reported."""
    with open_video(path, max_frames=32) as frames:
        if frames.count is not None and frames.count < 1:
            raise InvariantViolation(f"a video of {frames.count} frames")
        if not 0 < frames.fps < math.inf:
            raise InvariantViolation(f"a video of {frames.fps} frames per second")
        for index, frame in enumerate(frames):
            if frame.dtype != np.uint8 or frame.shape != (*frames.size, 3) or not frame.flags.c_contiguous:
                raise InvariantViolation(f"frame {index} is {frame.dtype} {frame.shape} of {frames.size}")
            frames.frame_name(index)


def _examples() -> list[bytes]:
    pictures = SEPARATOR.join([example_videos.picture("PNG")] * 3)
    files = [bytes([SUFFIXES.index(suffix)]) + data for suffix, data in example_videos.examples()]
    return [*files, bytes([FOLDER]) + pictures]


TARGET = Target(_prepare, _examples, damaged_bytes(_examples, WORDS))
