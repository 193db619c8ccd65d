"""Completeness of a video file: the sizes that it declares for itself against its size."""

from __future__ import annotations

import io
import mmap
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

EBML, SEGMENT, CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
"""Identifiers of Matroska's elements."""

BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot")
"""First boxes of MP4 and QuickTime files."""

PART_HEADS = (b"moof", b"sidx", b"styp", b"prft")
"""Boxes of a fragmented MP4 that precede the frames of a part."""

TRAILERS = (b"mfra", b"free", b"skip", b"udta", b"meta", b"uuid")
"""Boxes that may follow the last part, and hold no frames."""

HEADS = (b"ftyp", b"moov")
"""Boxes that stand once in an MP4 file."""

SIGNATURES = {b"FLV\x01": 9, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": 16, b"DKIF": 16}
"""Beginnings of FLV, ASF and IVF files, and how many bytes of it another such file repeats."""

HEAD_SECONDS = 5.0
"""Time in which a server has to send the first bytes again."""

MAX_MOOV = 1 << 20
"""Bytes in which a fragmented MP4 has said so."""


def missing_seconds(
    path: Path | None, container: InputContainer, stream: VideoStream, end: float, end_is_missing: bool
) -> tuple[float, float]:
    """Return (declared length, seconds of it that are missing) for a video whose last frame is shown until `end`.

    A last frame may stay for long without saying so, and sound may go on: where the file's own sizes say that it is
    whole, nothing is missing. Where they say nothing, half a second and five frames are tolerated.
    """
    cut = _is_cut_on_server(container, stream) if path is None else is_cut(path)
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
    with path.open("rb") as file:
        return _ends_early(file, path.stat().st_size)


def _ends_early(file: BinaryIO, size: int) -> bool | None:
    head, end = file.read(12), None
    file.seek(0)
    if head.startswith(EBML):
        end = _segment_end(file)
    elif head.startswith(b"RIFF"):
        end = _riff_end(file, size)
    elif head[4:8] in BOXES:
        end = _boxes_end(file, size)
    return None if end is None else end > size


def _is_cut_on_server(container: InputContainer, stream: VideoStream) -> bool | None:
    """Tell whether a file on a web server ends early: before the last frame of an MP4, else as `is_cut` does."""
    import av

    size = container.size
    if size <= 0 or not container.name.startswith("http"):
        return None
    if "mp4" in container.format.name:
        frames = stream.index_entries
        if any(frame.pos + frame.size > size for frame in frames):
            return True
        return False if 0 < stream.frames <= len(frames) else None
    try:
        with av.open(container.name, format="data", timeout=HEAD_SECONDS) as raw:
            return _ends_early(io.BytesIO(bytes(next(raw.demux()))), size)
    except (av.FFmpegError, OSError, StopIteration):
        return None


def _boxes_end(file: BinaryIO, size: int) -> int | None:
    """Return where the last of the outermost boxes of an MP4 file with content ends, None if that is not said."""
    boxes = _boxes(file, size)
    return max((end for kind, end in boxes if kind not in TRAILERS), default=0) if boxes else None


def _boxes(file: BinaryIO, size: int) -> list[tuple[bytes, int]]:
    """Return the types and ends of the outermost boxes of an MP4 file; none if one has no size."""
    boxes, position = [], 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:  # 0: until the end of the file, wherever that is
            return []
        position += length
        boxes.append((head[4:8], position))
    return boxes


def ends_within_part(path: Path) -> bool:
    """Tell whether a file that is written in parts, without a size of the whole, ends within a part.

    These are fragmented MP4 files, and Matroska files of live streams. Parts that are lost as a whole leave no trace.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        if head.startswith(EBML):
            return _segment_end(file) is None and _elements_end(file, size) > size
        boxes = _boxes(file, size) if head[4:] in BOXES else []
        kinds, end = [kind for kind, _ in boxes], boxes[-1][1] if boxes else 0
        if b"moof" not in kinds and not (b"moov" in kinds and _declares_fragments(file, boxes)):
            return False
    return 0 < size - end < 8 or kinds[-1] in PART_HEADS or (end > size and kinds[-1] not in TRAILERS)


def joined_at(path: Path) -> int | None:
    """Return where a second video begins that was joined to the first one as bytes, and that FFmpeg does not read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if head[4:8] in BOXES:
            boxes = _boxes(file, size)
            heads = [
                start for (kind, _), start in zip(boxes, [0, *(end for _, end in boxes)], strict=False) if kind in HEADS
            ]
            kinds = [kind for kind, _ in boxes if kind in HEADS]
            first = kinds.index(b"moov") if b"moov" in kinds else len(kinds)
            return next(iter(heads[first + 1 :]), None)
        signature = next((head[:length] for start, length in SIGNATURES.items() if head.startswith(start)), None)
        if signature is None:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.find(signature, 1)
    return at if at > 0 else None


def _declares_fragments(file: BinaryIO, boxes: list[tuple[bytes, int]]) -> bool:
    number = [kind for kind, _ in boxes].index(b"moov")
    start = boxes[number - 1][1] if number else 0
    file.seek(start)
    return b"mvex" in file.read(min(boxes[number][1] - start, MAX_MOOV))


def _elements_end(file: BinaryIO, size: int) -> int:
    """Return where the last element of a Matroska file ends; `file` is at the contents of its segment."""
    position = file.tell()
    while position < size:
        file.seek(position)
        first = file.read(1)[0]
        extra = 8 - first.bit_length()
        identifier = bytes([first]) + file.read(extra)
        length, unknown = _vint(file)
        if extra > 3 or length is None:  # no element, or its head is cut
            return size + 1 if file.tell() >= size else size
        # of unknown size are segments and clusters, whose elements follow
        position = file.tell() + (0 if unknown else length)
        if unknown and identifier not in (SEGMENT, CLUSTER):
            return size
    return position


def _vint(file: BinaryIO) -> tuple[int | None, bool]:
    """Read a size of Matroska: (size, whether it is the one for unknown sizes); None if there is none."""
    first = int.from_bytes(file.read(1), "big")
    extra = 8 - first.bit_length()
    rest = file.read(extra)
    if extra == 8 or len(rest) < extra:
        return None, False
    length = int.from_bytes(bytes([first & (0x7F >> extra)]) + rest, "big")
    return length, length == (1 << 7 * (extra + 1)) - 1


def _riff_end(file: BinaryIO, size: int) -> int | None:
    """Return where the last RIFF chunk of an AVI file ends: one gigabyte each. None if one does not say it."""
    position, end = 0, None
    while position + 8 <= size:
        file.seek(position)
        head = file.read(8)
        if not head.startswith(b"RIFF"):
            break
        length = int.from_bytes(head[4:], "little")
        if not length:
            return None
        end = position + length  # and 8 more, which some writers count and others do not
        position = end + 8 + length % 2
    return end


def _segment_end(file: BinaryIO) -> int | None:
    """Return where the segment of a Matroska file ends, None if it does not say; leave the file at its contents."""
    for identifier in (EBML, SEGMENT):
        if file.read(4) != identifier:
            return None
        length, unknown = _vint(file)
        if length is None:
            return None
        if identifier == SEGMENT:
            return None if unknown else file.tell() + length
        file.seek(length, 1)
    return None
