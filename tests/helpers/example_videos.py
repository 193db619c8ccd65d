"""Small videos and pictures in every format that the runtime reads."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path

from PIL import Image

from helpers import media


def picture(kind: str, mode: str = "RGB") -> bytes:
    """A picture in a format and mode of Pillow."""
    out = io.BytesIO()
    Image.fromarray(media.clip(1)[0]).convert(mode).save(out, kind)
    return out.getvalue()


@functools.cache
def examples() -> list[tuple[str, bytes]]:
    """(suffix, content) of a small file in each format."""
    found = [
        (".png", picture("PNG")),
        (".png", picture("PNG", "LA")),
        (".jpg", picture("JPEG")),
        (".tif", picture("TIFF", "I;16")),
        (".webp", picture("WEBP")),
        (".y4m", b"YUV4MPEG2 W16 H16 F24:1 C420\n" + b"FRAME\n" + bytes(384)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for suffix, codec, options in (
            (".mp4", "libx264", {}),
            (".mp4", "mpeg4", {"movflags": "faststart"}),
            (".webm", "libvpx", {}),
            (".ts", "libx264", {}),
            (".avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
            (".gif", "gif", {"pix_fmt": "rgb8"}),
            (".mkv", "ffv1", {}),
        ):
            path = media.write(Path(folder, f"a{suffix}"), media.clip(6), codec, fps=12, **options)
            found.append((suffix, path.read_bytes()))
    return found
