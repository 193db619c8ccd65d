"""Pages of an open image: which of its parts are read, and for how long each is shown."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MIN_GIF_MS = 20
DEFAULT_MS = 100
"""Duration of a frame without one, and of a GIF's frame with a shorter one: as in browsers and FFmpeg."""

_SUBFILE_TYPE = 254
"""Number of a TIFF tag."""


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
