"""Pictures in: any that Pillow reads, as uint8 RGB in display orientation.

Grayscale becomes three equal channels, 16 bits keep their high byte, and transparency is shown over black. Pillow is
imported on first use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import VideoError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")

"""What Pillow may open; several JPEGs in one file (MPO) come with JPEG."""

MAX_PIXELS = 1 << 26
"""Frames above 67 megapixels (8192 x 8192) are refused: twice 8K, and far above what the networks look at."""


def read_picture(path: Path) -> np.ndarray:
    """One picture as uint8 RGB (H, W, 3), turned as its EXIF data says. Raises VideoError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _open_picture(path) as image:
            check_size(image.height, image.width, path)
            image = ImageOps.exif_transpose(image)
            return _rgb(image, path)
    except UnidentifiedImageError:
        raise VideoError(f"{path}: not a picture, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise VideoError(f"{path}: the picture is larger than {MAX_PIXELS:,} pixels; scale it down") from None
    except VideoError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen kinds for a damaged file
        raise VideoError(f"{path}: the picture is damaged or cut short ({reason(error)})") from None


def _open_picture(path: Path) -> Any:
    import warnings

    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is stricter, and an error
        return Image.open(path, formats=FORMATS)


def _rgb(image: Any, where: Path) -> np.ndarray:
    if image.mode == "F":
        raise VideoError(f"{where}: a picture of floating point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits of gray, also where Pillow holds them in 32
        gray = np.asarray(image).astype(np.int64).clip(0, 0xFFFF) >> 8
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return over_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def over_black(rgba: np.ndarray) -> np.ndarray:
    """uint8 RGBA (H,W,4) shown over black, rounded, uint8 RGB (H,W,3)."""
    product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127
    return (product // 255).astype(np.uint8)


def check_size(height: int, width: int, where: Any) -> None:
    """Raise VideoError for a frame without area or with too much of it."""
    if height < 1 or width < 1:
        raise VideoError(f"{where}: frames of {width}x{height} pixels hold nothing to look at")
    if height * width > MAX_PIXELS:
        raise VideoError(f"{where}: frames of {width}x{height} are larger than {MAX_PIXELS:,} pixels; scale them down")


def is_picture(path: Path) -> bool:
    """Whether a file is a picture and not a video; a damaged one is judged by its name."""
    try:
        with _open_picture(path) as image:
            return getattr(image, "n_frames", 1) == 1 or image.format == "MPO"
    except Exception:  # whatever is wrong with it is told by the reader that gets it
        return path.suffix.lower() in PICTURES and path.suffix.lower() != ".gif"


def reason(error: BaseException) -> str:
    """What went wrong, in a few words on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:160].rstrip(".")


def checked_frame(frame: Any, index: int, size: tuple[int, int] | None) -> np.ndarray:
    """A frame as uint8 RGB (H,W,3). Raises VideoError for anything else, or for another size than `size`."""
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise VideoError(f"frame {index}: must be uint8 RGB (height, width, 3), not {frame.dtype} {frame.shape}")
    if size is not None and frame.shape[:2] != size:
        raise VideoError(
            f"frame {index}: size changed from {size[1]}x{size[0]} to {frame.shape[1]}x{frame.shape[0]}; "
            "open a new session for the new size"
        )
    return frame
