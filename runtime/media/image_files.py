"""Image files of every kind that Pillow reads, as uint8 RGB in display orientation.

Grayscale becomes three equal channels, 16-bit images keep their high byte, and transparency is composited over black.
Pages and the frames of an animation are decoded one by one. Pillow is imported on first use.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle.placeholder import describe_unreadable
from ..errors import SamwiseRuntimeError, VideoError, summarize
from ..results import Stamp
from .image_pages import is_ppm_sequence, leftover_notes, list_pages, page_duration, without_warnings
from .source import Frame, Source

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = ".png .apng .jpg .jpeg .jpe .jfif .bmp .webp .tif .tiff .ppm .pgm .pbm .pnm .gif .jp2 .avif .heic .heif"
IMAGE_SUFFIXES = tuple(_SUFFIXES.split())

PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF", "JPEG2000", "AVIF", "HEIF")
"""Formats that Pillow may open; files of several JPEGs (MPO) come with JPEG, and HEIF with the package pillow-heif."""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1")
HEIF_ADVICE = "HEIC needs the package pillow-heif (pip install pillow-heif); install it, or convert to JPEG or PNG"

MAX_PIXELS = 1 << 26
"""Largest frame: 67 megapixels (8192 x 8192), twice 8K and far above the input size of the networks."""

_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284
"""Numbers of TIFF tags."""


def read_image(path: Path, notes: list[str] | None = None) -> np.ndarray:
    """Read one image as uint8 RGB (H, W, 3), rotated as its EXIF data says: the first page, if it has several.

    What is left out is told in `notes`. Raises VideoError.
    """
    with _opened(path) as image:
        pages = list_pages(image)
        if notes is not None:
            if len(pages) > 1:
                notes.append(f"{path}: the first of its {len(pages)} pages is read; give the file itself to read all")
            notes += leftover_notes(image, path, pages)
        _seek(image, pages[0], path)
        return _read_page(image, path)


def decode_image(data: bytes, formats: tuple[str, ...], max_pixels: int) -> np.ndarray:
    """Decode one picture that anybody may have sent, as `read_image` does a file. Raises VideoError.

    Its size stands in its header, and is checked before a pixel is decoded.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise VideoError(f"a picture of {image.width}x{image.height} pixels; send at most {max_pixels:,}")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise VideoError("an animation; send its frames as pictures of their own")
            return _read_page(image, "the picture")
    except VideoError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen types for a damaged file
        reason = "" if "BytesIO" in str(error) else f" ({summarize(error, 80)})"
        raise VideoError(f"not a picture of the kinds {', '.join(formats)}, or a damaged one{reason}") from None


def read_pages(source: Source, path: Path, stride: int, strict: bool) -> Iterator[Frame]:
    """Read every `stride`-th page of an image, or frame of an animation with its time, and tell `source` about them.

    Damaged pages are left out if others follow, unless `strict`. Raises VideoError.
    """
    with _opened(path) as image:
        pages, shown = list_pages(image), 0.0
        source.notes += leftover_notes(image, path, pages)
        if image.format == "TIFF" and len(pages) > 1:
            yield from _read_tiff(source, image, pages, stride, strict)
            return
        for position, page in enumerate(pages):
            name = f"{path}, page {position + 1} of {len(pages)}" if len(pages) > 1 else path
            with _report_damage(name):
                _seek(image, page, name)
                image.load()  # some formats tell the duration only then
                if position == 0:
                    source.notes += _range_note(image, path)
                array = _read_page(image, name) if position % stride == 0 else None
            duration = page_duration(image)
            if array is not None:
                yield Frame(array, Stamp(shown if duration is not None else None))
            shown += duration or 0.0
        source.end = shown or None


def _read_tiff(source: Source, image: Image.Image, pages: Sequence[int], stride: int, strict: bool) -> Iterator[Frame]:
    """Read pages that do not depend on each other. Damage up to the end of the file is an error: it is cut short."""
    errors: list[VideoError] = []
    for position in range(0, len(pages), stride):
        name = f"{source.name}, page {position + 1} of {len(pages)}"
        try:
            with _report_damage(name):
                _seek(image, pages[position], name)
                array = _read_page(image, name)
        except VideoError as error:
            if strict:
                raise
            source.left_out.append(position // stride)
            errors.append(error)
            continue
        source.notes += [f"left out: {error}" for error in errors]
        source.notes += _range_note(image, source.name) if position == 0 else []
        errors.clear()
        yield Frame(array)
    if errors:
        raise errors[0]


def count_pages(path: Path) -> int:
    """Return the number of pages or frames of an image file, 1 if it has an image's suffix only; 0 for a video."""
    suffix = path.suffix.lower()
    try:
        with _open_image(path) as image:
            several = suffix in (".mjpeg", ".mjpg") or (image.format == "PPM" and is_ppm_sequence(image, path))
            return 0 if several else len(list_pages(image))
    except Exception:  # the reader that opens the file next reports the error
        return int(suffix in IMAGE_SUFFIXES or _is_heif(path))


def first_duration(path: Path) -> float | None:
    """Return for how many seconds an animation shows its first frame; None for other images."""
    with _opened(path) as image:
        if image.format == "TIFF":  # listing its pages takes long
            return None
        _seek(image, list_pages(image)[0], path)
        image.load()
        return page_duration(image)


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image, rotated as its EXIF data says. Raises VideoError, also for what Pillow raises inside."""
    from PIL import ImageOps

    with _opened(path) as image:
        _seek(image, list_pages(image)[0], path)
        yield ImageOps.exif_transpose(image)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with _report_damage(path), _open_image(path) as image:
        yield image


@contextlib.contextmanager
def _report_damage(name: str | Path) -> Iterator[None]:
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:
        reason = HEIF_ADVICE if _is_heif(Path(name)) else describe_unreadable(Path(name))
        raise VideoError(f"{name}: {reason or 'not an image, or its header is damaged'}") from None
    except Image.DecompressionBombError:
        raise VideoError(f"{name}: the image is larger than {MAX_PIXELS:,} pixels; scale it down") from None
    except SamwiseRuntimeError:
        raise
    except Exception as error:  # Pillow's readers raise a dozen types for a damaged file
        if isinstance(error, OSError) and error.errno is not None:  # of the operating system, not of Pillow
            raise VideoError(f"{name}: not readable ({summarize(error)}); check the path and its permissions") from None
        raise VideoError(f"{name}: the image is damaged or cut short ({summarize(error)})") from None


@without_warnings()
def _open_image(path: Path) -> Image.Image:
    from PIL import Image

    return Image.open(path, formats=_installed_formats())


@functools.cache
def _installed_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return tuple(name for name in PILLOW_FORMATS if name in Image.OPEN)


def can_read(suffix: str) -> bool:
    """Tell whether images with this suffix can be read here."""
    needs = {".heic": "HEIF", ".heif": "HEIF", ".avif": "AVIF"}
    return suffix in IMAGE_SUFFIXES and needs.get(suffix, "PNG") in _installed_formats()


def _is_heif(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


@without_warnings()
def _seek(image: Image.Image, page: int, name: str | Path) -> None:
    image.seek(page)
    check_size(image.height, image.width, name)


def _read_page(image: Image.Image, name: str | Path) -> np.ndarray:
    """Read the current page, in display orientation."""
    from PIL import ImageOps

    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(_PHOTOMETRIC) == 0 and image.mode.startswith("I;16")  # Pillow inverts those of 8 bits
    if tags.get(_PLANES) == 2 and max(tags.get(_BITS, (8,))) > 8:
        raise VideoError(f"{name}: 16-bit colours in separate planes; save it with interleaved colours")
    array = _to_rgb(ImageOps.exif_transpose(image), name)
    return 255 - array if inverted else array


def _range_note(image: Image.Image, path: str | Path) -> list[str]:
    """Return a note about 16-bit values that end far below 16 bits, as those of many microscopes."""
    top = int(np.asarray(image).max()) if image.mode.startswith("I") else 0
    dark = f"{path}: its 16-bit values end at {top}, so that frames are dark; scale them to the range up to 65535"
    return [dark] if 0 < top < 1 << 12 else []


def _to_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    if image.mode == "F":
        raise VideoError(f"{path}: an image of floating point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit gray, also where Pillow stores it in 32 bits
        gray = np.asarray(image).astype(np.int64).clip(0, 0xFFFF) >> 8
        return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return composite_over_black(np.asarray(image.convert("RGBA")))
    if image.mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="RGB") or image
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


def check_frame(frame: Any, index: int, size: tuple[int, int] | None) -> np.ndarray:
    """Return a frame as uint8 RGB (H, W, 3). Raises VideoError for anything else, or for another size than `size`."""
    kind = type(frame).__name__
    if np.ma.is_masked(frame):
        raise VideoError(f"frame {index}: a masked array; give the pixels that are masked a colour: frame.filled(0)")
    if isinstance(frame, (tuple, list)) and any(isinstance(part, (bool, np.bool_)) for part in frame):
        raise VideoError(f"frame {index}: a {kind} with a bool, as of cv2's read(); give the frame alone, in RGB")
    frame = _without_pillow(frame, f"frame {index}")
    try:
        array: np.ndarray = np.asarray(frame)
    except Exception as error:  # a library's array that numpy cannot read, such as one on a GPU
        reason = summarize(error)
        raise VideoError(
            f"frame {index}: not an array in host memory, but a {kind} ({reason}); copy it there"
        ) from None
    if array.dtype.kind not in "biuf":
        raise VideoError(
            f"frame {index}: must be uint8 RGB (height, width, 3), not {kind}; runtime.open_video(...) reads files"
        )
    check_frame_array(array, index, size)
    return array


def _without_pillow(frame: Any, name: str) -> Any:
    """Return an image of Pillow as uint8 RGB, whatever its mode, and anything else as it is. Raises VideoError."""
    pillow = sys.modules.get("PIL.Image")  # not imported: no such image
    if pillow is None or not isinstance(frame, pillow.Image):
        return frame
    with _report_damage(name):
        return _to_rgb(frame, name)


def check_frame_array(array: Any, index: int, size: tuple[int, int] | None) -> None:
    """Raise VideoError as `check_frame` does, for an array that may lie on a GPU."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise VideoError(f"frame {index}: must be uint8 RGB (height, width, 3), not {array.dtype} {array.shape}")
    if size is not None and array.shape[:2] != size:
        raise VideoError(
            f"frame {index}: size changed from {size[1]}x{size[0]} to {array.shape[1]}x{array.shape[0]}; "
            "open a new session for the new size"
        )
