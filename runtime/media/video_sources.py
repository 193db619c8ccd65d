"""Sources of frames: an image, a folder of images, a video file, a camera or a network address.

Each opener returns a `Source`: properties of the video and an iterator of uint8 RGB frames (H, W, 3) in display
orientation, with their times. `image_files.py` reads pictures, and `container.py` what PyAV decodes.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import VideoError, summarize
from .container import open_camera, open_device, open_url, open_video_file
from .image_files import IMAGE_SUFFIXES, is_image, read_image
from .source import Frame, Source

FOLDER_FPS = 24.0
"""Frame rate assumed for a folder of images: that of DAVIS."""


def open_source(source: str | Path | int, stride: int = 1) -> Source:
    """Open a source of any kind and read every `stride`-th frame of it. Raises VideoError."""
    text = str(source)
    if isinstance(source, int) or (re.fullmatch(r"\d{1,3}", text) and not Path(text).exists()):
        return open_camera(int(text), stride)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        return open_url(text, stride)
    path = Path(source)
    try:
        if not path.exists():
            raise VideoError(f"{path}: no such file or folder")
        if path.is_dir():
            return _image_folder(path, stride)
        if path.is_char_device():
            return open_device(text, text, "v4l2", stride)
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes); copy or record it again")
    except OSError as error:
        raise VideoError(f"{path}: not readable ({summarize(error)}); check the path and its permissions") from None
    return _image(path) if is_image(path) else open_video_file(path, stride)


def _image(path: Path) -> Source:
    return Source(
        str(path), FOLDER_FPS, 1, iter([Frame(read_image(path))]), count_is_exact=True, names=[path.stem], files=[path]
    )


def _image_folder(path: Path, stride: int) -> Source:
    files = sorted(
        (f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")),
        key=lambda f: natural_key(f.name),
    )
    if not files:
        raise VideoError(f"{path}: no images in this folder (looked for {' '.join(IMAGE_SUFFIXES)})")
    frames = map(Frame, map(read_image, files[::stride]))
    names = [file.stem for file in files[::stride]]
    return Source(str(path), FOLDER_FPS / stride, len(names), frames, count_is_exact=True, names=names, files=files)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts frame2 before frame10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part.lower()) for part in parts]
