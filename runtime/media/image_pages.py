"""Pages of an open image: which of its parts are read, and for how long each is shown."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MIN_GIF_MS = 20
DEFAULT_MS = 100
"""Duration of a frame without one, and of a GIF's frame with a shorter one: as in browsers and FFmpeg."""

_SUBFILE_TYPE, _DESCRIPTION = 254, 270
"""Numbers of TIFF tags."""

_IMAGEJ = re.compile(r"ImageJ=.*^images=(\d{1,9})\s*$", re.DOTALL | re.MULTILINE)

_APPENDED = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff[\xc0-\xfe])|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<GIF>GIF8[79]a)|(?P<WebP>RIFF....WEBP)"
    rb"|(?P<video>\0\0..ftyp(?:mp4|isom|iso[2-9]|qt  |MSNV|avc1|3gp|M4V))",
    re.DOTALL,
)
"""Beginning of an image or video that follows an image in the same file."""


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings about odd tags, and about large images: the limit here is lower, and an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def list_pages(image: Any) -> Sequence[int]:
    """Return the numbers of an image's pages, or of the frames of an animation."""
    if image.format == "MPO":  # previews and depth maps follow the picture
        return [0]
    if image.format == "TIFF":
        return _tiff_pages(image)
    # the picture for viewers without animation is not among an APNG's frames
    return range(bool(getattr(image, "default_image", False)), getattr(image, "n_frames", 1)) or [0]


@without_warnings()
def _tiff_pages(image: Any) -> Sequence[int]:
    """Return the pages that are neither a smaller copy of another one nor a mask."""
    pages = []
    with contextlib.suppress(EOFError):  # after the last page
        for number in itertools.count():
            image.seek(number)
            if not image.tag_v2.get(_SUBFILE_TYPE, 0) & 5:
                pages.append(number)
    return pages or [0]


def page_duration(image: Any) -> float | None:
    """Return for how many seconds the current frame of an animation is shown; None for pages."""
    if image.format == "TIFF" or getattr(image, "n_frames", 1) == 1:
        return None
    ms = float(image.info.get("duration") or 0)
    return (ms if ms >= (MIN_GIF_MS if image.format == "GIF" else 0.001) else DEFAULT_MS) / 1000


def is_ppm_sequence(image: Any, path: Path) -> bool:
    """Tell whether another image follows the first one, which the format allows."""
    tile, bytes_per_pixel = image.tile[0], {"1": 1 / 8, "L": 1, "I": 2}.get(image.mode, 3)
    size = 2 * image.width * image.height * bytes_per_pixel + tile[2]
    return bool(tile[0] == "raw" and path.stat().st_size >= size)


def leftover_notes(image: Any, path: Path, pages: Sequence[int]) -> list[str]:
    """Return notes about images in a file that are none of its pages, and are not read."""
    if image.format == "MPO":
        return [
            f"{path}: one of the {getattr(image, 'n_frames', 2)} images in it is read, not previews, maps and views"
        ]
    if image.format == "TIFF":
        stack = _IMAGEJ.match(str(image.tag_v2.get(_DESCRIPTION, ""))) if len(pages) == 1 else None
        if stack is None or int(stack[1]) == 1:
            return []
        return [f"{path}: one of the {stack[1]} images of this ImageJ stack is read; save it as an image sequence"]
    if image.format not in _ENDS or not path.stat().st_size:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        appended = _APPENDED.search(data, _ENDS[image.format](data))
        if appended is None:
            return []
        what = "a video" if appended.lastgroup == "video" else f"another image ({appended.lastgroup})"
        return [f"{path}: {what} follows the image at byte {appended.start():,}, and is not read"]


def _jpeg_end(data: mmap.mmap) -> int:
    """Return where the pixels end, or a table among them; the segments before may hold other images."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    end = data.find(b"\xff\xd9", at)
    return end if end > 0 else len(data)


def _png_end(data: mmap.mmap) -> int:
    at = 8
    while at + 8 <= len(data):
        kind = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"IEND":
            break
    return at


def _riff_end(data: mmap.mmap) -> int:
    return 8 + int.from_bytes(data[4:8], "little")


def _gif_end(data: mmap.mmap) -> int:
    end = data.find(b"\0;GIF8")  # the end of the last image and of the file, before another one
    return end if end > 0 else len(data)


_ENDS = {"JPEG": _jpeg_end, "PNG": _png_end, "WEBP": _riff_end, "GIF": _gif_end}
"""Where to look for what follows an image, by its format."""
