"""Sources of frames: images, a folder of them, a video file, a camera or a network address.

Each opener returns a `Source`: properties of the video and an iterator of uint8 RGB frames (H, W, 3) in display
orientation, with their times. `image_sources.py` reads pictures, and `container.py` what PyAV decodes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..bundle.placeholder import describe_other_file
from ..errors import VideoError, hide_secrets, summarize
from .container import open_camera, open_device, open_url, open_video_file
from .image_files import count_pages
from .image_sources import missing, open_files, open_folder, open_image_file, open_pattern
from .live import RETRIES
from .paths import local_path
from .playlists import address_files
from .source import Source

VideoSource = str | Path | int | Sequence[str | Path]
"""A path, an address, a pattern of image names, a camera number, or a list of images."""


_BARE_ADDRESS = re.compile(r":.*@|\?.*=|^(\d{1,3}(\.\d{1,3}){3}|[\w-]+(\.[\w-]+)+:\d+)([:/]|$)")
"""An address without its scheme, which may hold a password: credentials, a query, or a host in front."""


def open_source(source: VideoSource, stride: int = 1, strict: bool = False, retries: int = RETRIES) -> Source:
    """Open a source of any kind and read every `stride`-th frame of it. Raises VideoError.

    strict   damage in a file is an error, and not left out and noted
    retries  number of times that a dropped camera or stream is reopened before it is an error
    """
    if isinstance(source, Sequence) and not isinstance(source, str):
        return open_files(source, stride, strict)
    text = str(source)
    if isinstance(source, int) or (re.fullmatch(r"\d{1,3}", text) and not Path(text).exists()):
        return open_camera(int(text), stride, retries)
    is_url = is_address(text) or (address_files(text) is not None and not Path(text).exists())
    if is_url and not text.lower().startswith("file:"):
        return open_url(text, stride, strict, retries)
    try:
        return _open_path(local_path(source), stride, strict, retries)
    except OSError as error:
        raise VideoError(f"{source}: not readable ({summarize(error)}); check the path and its permissions") from None


def is_address(text: str) -> bool:
    """Tell whether a text begins with the scheme of an address, like `rtsp://`."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None


def _open_path(path: Path, stride: int, strict: bool, retries: int) -> Source:
    if not path.exists():
        if _BARE_ADDRESS.search(str(path)):
            shown = hide_secrets(f"rtsp://{path}")[7:]
            raise VideoError(f"{shown}: no such file; an address begins with its scheme, like rtsp:// or https://")
        found = open_pattern(str(path), stride, strict)
        if isinstance(found, Source):
            return found
        path = found or path
    if not path.exists():
        raise VideoError(missing(path))
    if path.is_dir():
        return open_folder(path, stride, strict)
    if path.is_char_device():
        return open_device(str(path), str(path), "v4l2", stride, retries)
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes); copy or record it again")
    placeholder = describe_other_file(path) if path.suffix.lower() not in (".mpd", ".svg") else None  # these are XML
    if placeholder is not None:
        raise VideoError(f"{path}: {placeholder}")
    pages = count_pages(path)
    return open_image_file(path, pages, stride, strict) if pages else open_video_file(path, stride, strict)
