"""Image files of every kind that Pillow reads, as uint8 RGB in display orientation.

Grayscale becomes three equal channels, 16-bit images keep their high byte, and transparency is composited over black.
Pillow is imported on first use.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import SamwiseRuntimeError, VideoError, summarize

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".gif")

PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
"""Formats that Pillow may open; files of several JPEGs (MPO) come with JPEG."""

MAX_PIXELS = 1 << 26
"""Largest frame: 67 megapixels (8192 x 8192), twice 8K and far above the input size of the networks."""


def read_image(path: Path) -> np.ndarray:
    """Read one image as uint8 RGB (H, W, 3), rotated as its EXIF data says. Raises VideoError."""
    with open_image(path) as image:
        return _to_rgb(image, path)


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image, rotated as its EXIF data says. Raises VideoError, also for what Pillow raises inside."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with _open_image(path) as image:
            check_size(image.height, image.width, path)
            yield ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise VideoError(f"{path}: not an image, or its header is damaged") from None
    except Image.DecompressionBombError:
        raise VideoError(f"{path}: the image is larger than {MAX_PIXELS:,} pixels; scale it down") from None
    except SamwiseRuntimeError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen types for a damaged file
        raise VideoError(f"{path}: the image is damaged or cut short ({summarize(error)})") from None


def _open_image(path: Path) -> Image.Image:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower, and an error
        return Image.open(path, formats=PILLOW_FORMATS)


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode == "F":
        raise VideoError(f"{path}: an image of floating point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit gray, also where Pillow stores it in 32 bits
        gray = np.asarray(image).astype(np.int64).clip(0, 0xFFFF) >> 8
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return composite_over_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def composite_over_black(rgba: np.ndarray) -> np.ndarray:
    """Composite uint8 RGBA (H, W, 4) over black, rounded: uint8 RGB (H, W, 3)."""
    product = rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127
    rgb: np.ndarray = (product // 255).astype(np.uint8)
    return rgb


def check_size(height: int, width: int, source: str | Path) -> None:
    """Raise VideoError for a frame of no pixels or of more than `MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise VideoError(f"{source}: invalid frame size {width}x{height}")
    if height * width > MAX_PIXELS:
        raise VideoError(f"{source}: frames of {width}x{height} are larger than {MAX_PIXELS:,} pixels; scale them down")


def is_image(path: Path) -> bool:
    """Tell whether a file is an image and not a video, by its suffix if it cannot be opened."""
    try:
        with _open_image(path) as image:
            return getattr(image, "n_frames", 1) == 1 or image.format == "MPO"
    except Exception:  # the reader that opens the file next reports the error
        return path.suffix.lower() in IMAGE_SUFFIXES and path.suffix.lower() != ".gif"


def check_frame(frame: Any, index: int, size: tuple[int, int] | None) -> np.ndarray:
    """Return a frame as uint8 RGB (H, W, 3). Raises VideoError for anything else, or for another size than `size`."""
    array: np.ndarray = np.asarray(frame)
    check_frame_array(array, index, size)
    return array


def check_frame_array(array: Any, index: int, size: tuple[int, int] | None) -> None:
    """Raise VideoError as `check_frame` does, for an array that may lie on a GPU."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise VideoError(f"frame {index}: must be uint8 RGB (height, width, 3), not {array.dtype} {array.shape}")
    if size is not None and array.shape[:2] != size:
        raise VideoError(
            f"frame {index}: size changed from {size[1]}x{size[0]} to {array.shape[1]}x{array.shape[0]}; "
            "open a new session for the new size"
        )
