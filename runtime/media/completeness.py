"""Completeness of a video file: the sizes that it declares for itself against its size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot")
"""First boxes of MP4 and QuickTime files."""


def missing_seconds(
    path: Path | None, container: InputContainer, stream: VideoStream, end: float, end_is_missing: bool
) -> tuple[float, float]:
    """Return (declared length, seconds of it that are missing) for a video whose last frame is shown until `end`.

    A last frame may stay for long without saying so, and sound may go on: where the file's own sizes say that it is
    whole, nothing is missing. Where they say nothing, half a second and five frames are tolerated.
    """
    cut = None if path is None else is_cut(path)
    if cut is False:
        return 0.0, 0.0
    declared, frame = _declared_seconds(container, stream, cut or end_is_missing), 1 / float(stream.average_rate or 24)
    tolerated = max(0.5, 5 * frame) if cut is None else 0.0 if end_is_missing else 1.5 * frame
    return declared, declared - end if declared - end > tolerated else 0.0


def _declared_seconds(container: InputContainer, stream: VideoStream, estimate: bool) -> float:
    """Return the video's length by its header; 0 where that is only an estimate and `estimate` is false."""
    tag = re.fullmatch(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d*)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    if estimate and stream.duration and stream.time_base:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    return (container.duration or 0) / 1e6 if estimate or (len(container.streams) == 1 and stream.frames) else 0.0


def is_cut(path: Path) -> bool | None:
    """Tell whether the file ends before the outermost box, chunk or element in it does; None for other formats."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        end = None
        if head.startswith(EBML):
            end = _segment_end(file)
        elif head.startswith(b"RIFF"):
            end = int.from_bytes(head[4:8], "little") or None  # and 8 more, which some writers count and others do not
        elif head[4:8] in BOXES:
            end = _boxes_end(file, size)
    return None if end is None else end > size


def _boxes_end(file: BinaryIO, size: int) -> int | None:
    """Return where the last of the outermost boxes of an MP4 file ends, None if that is not said."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: until the end of the file, wherever that is
            return None
        position += length
    return position


def _segment_end(file: BinaryIO) -> int | None:
    """Return where the segment of a Matroska file ends, None if it does not say."""
    for identifier in (EBML, SEGMENT):
        if file.read(4) != identifier:
            return None
        first = int.from_bytes(file.read(1), "big")
        extra = 8 - first.bit_length()
        if extra == 8:
            return None
        length = int.from_bytes(bytes([first & (0x7F >> extra)]) + file.read(extra), "big")
        if identifier == SEGMENT:
            return None if length == (1 << 7 * (extra + 1)) - 1 else file.tell() + length
        file.seek(length, 1)
    return None
