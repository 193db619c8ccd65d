"""Masks drawn over frames: translucent fill, contour, and a label at each object. Contact sheets.

Colours are those of the DAVIS annotations (the palette of PASCAL VOC), so that overlays, indexed masks and other tools
agree on who is who. Drawing needs Pillow for the letters only; it is imported when the first label is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..metrics import contour, dilate
from ..results import Result

Corners = tuple[int, int, int, int]
"""x0, y0, x1, y1."""

FILL = 115
"""Part of the object's colour in the fill, of 256."""

SMALL_SIDE = 480
"""Overlays of smaller videos are enlarged by a whole number to at least this short side, or labels would not fit."""

LARGE_SIDE = 3840
"""Overlays of larger videos are scaled down: beyond 4K players give up."""


def palette() -> np.ndarray:
    """The DAVIS palette, uint8 (256, 3): bits 0, 3, 6 of an index are the top bits of red, 1, 4, 7 green, 2, 5 blue."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for bit in range(8):
            source = 3 * bit + channel
            if source < 8:
                colours[:, channel] |= ((index >> source & 1) << 7 - bit).astype(np.uint8)
    return colours


def order(result: Result, small_on_top: bool = False) -> np.ndarray:
    """Objects from the lowest to the topmost: by score, or the smaller ones on top."""
    keys = -result.masks.sum(axis=(1, 2)) if small_on_top else result.scores
    return np.argsort(keys, kind="stable")


def stack(result: Result, small_on_top: bool = False) -> np.ndarray:
    """Object id per pixel, uint8 (H, W), 0 for the background; overlaps as `order` says."""
    indexed = np.zeros(result.masks.shape[1:], np.uint8)
    for k in order(result, small_on_top):
        indexed[result.masks[k]] = result.object_ids[k]
    return indexed


class Painter:
    """Draws results of one video.

    `size` (height, width) of the source; `labels` one text per object id, none for objects without. `canvas` is the
    (height, width) of what comes out: even, as H.264 wants it, and of a size at which letters can be read.
    """

    def __init__(self, size: tuple[int, int], labels: Mapping[int, str], small_on_top: bool = False) -> None:
        self._small_on_top = small_on_top
        self._labels = {identity: " ".join(label.split()) for identity, label in labels.items()}
        height, width = size
        self._repeat = max(1, min(-(-SMALL_SIDE // min(size)), LARGE_SIDE // max(size)))
        shrink = min(1.0, LARGE_SIDE / max(size))
        self._inner = (max(1, round(height * self._repeat * shrink)), max(1, round(width * self._repeat * shrink)))
        self.canvas = tuple(d + d % 2 for d in self._inner)
        self._unit = max(1, round(min(self._inner) / 360))
        bright = palette().astype(np.float64)
        # the palette's first colours are half as bright as a screen can show: good for fills, too dark for thin lines
        self._lines = (bright * 255 / np.maximum(bright.max(axis=1, keepdims=True), 1)).astype(np.uint8)

    def __call__(self, frame: np.ndarray, result: Result) -> np.ndarray:
        """`frame` uint8 (H, W, 3) with its objects, uint8 (*canvas, 3)."""
        image = self._enlarge(frame)
        boxes = []
        for k in order(result, self._small_on_top):
            if result.masks[k].any():
                colour = self._lines[result.object_ids[k] % 256]
                boxes.append((int(k), self._object(image, self._enlarge_mask(result.masks[k]), colour)))
        if boxes:
            image = self._write(image, sorted(boxes), result)
        below, right = (whole - part for whole, part in zip(self.canvas, image.shape))
        return np.pad(image, ((0, below), (0, right), (0, 0)), "edge")

    def _enlarge(self, frame: np.ndarray) -> np.ndarray:
        if self._inner == frame.shape[:2]:
            return frame.copy()
        from PIL import Image

        return np.array(Image.fromarray(frame).resize(self._inner[::-1], Image.Resampling.BICUBIC))

    def _enlarge_mask(self, mask: np.ndarray) -> np.ndarray:
        if self._inner == mask.shape:
            return mask
        from PIL import Image

        image = Image.fromarray(mask.astype(np.uint8) * 255).resize(self._inner[::-1], Image.Resampling.BILINEAR)
        return np.asarray(image) > 127

    def _object(self, image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> Corners:
        """Fill and outline one mask in place; returns its box."""
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        if not len(rows):
            return 0, 0, 0, 0
        y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        margin = 3 * self._unit
        window = (slice(max(0, y0 - margin), y1 + margin), slice(max(0, x0 - margin), x1 + margin))
        part, inside = image[window], mask[window]
        part[inside] = (part[inside].astype(np.uint16) * (256 - FILL) + colour.astype(np.uint16) * FILL) >> 8
        edge = contour(inside)
        part[dilate(edge, 2 * self._unit)] //= 2  # a dark rim keeps the line visible on any ground
        part[dilate(edge, self._unit)] = colour
        return x0, y0, x1, y1

    def _write(self, image: np.ndarray, boxes: list[tuple[int, Corners]], result: Result) -> np.ndarray:
        from PIL import Image, ImageDraw

        picture = Image.fromarray(image)
        draw = ImageDraw.Draw(picture)
        taken: list[Corners] = []
        for k, box in boxes:
            identity = result.object_ids[k]
            if identity not in self._labels:
                continue
            label = self._labels[identity]
            font = _font(max(13, round(min(self._inner) / 26)), label)
            text = _fit(draw, label, f"  {result.scores[k]:.2f}", font, self._inner[1] - 4 * self._unit)
            tag = self._place(draw.textbbox((0, 0), text, font=font), box, taken)
            taken.append(tag)
            colour = tuple(int(c) for c in self._lines[identity % 256])
            draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=colour)
            light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 120
            draw.text(
                ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2),
                text,
                font=font,
                anchor="mm",
                fill=(255, 255, 255) if light else (0, 0, 0),
            )
        return np.asarray(picture)

    def _place(self, extent: tuple[float, ...], box: Corners, taken: list[Corners]) -> Corners:
        """Where a label goes: above its object, else below, else wherever no other label is."""
        pad = 3 * self._unit
        width, height = round(extent[2] - extent[0]) + 2 * pad, round(extent[3] - extent[1]) + 2 * pad
        x = int(np.clip((box[0] + box[2]) // 2 - width // 2, 0, max(0, self._inner[1] - width)))
        last = max(0, self._inner[0] - height)
        above, below = box[1] - height - pad, box[3] + pad
        candidates = [y for y in (above, below) if 0 <= y <= last]
        candidates += [int(np.clip(y, 0, last)) for y in (box[1], *range(0, last + 1, height))]
        for y in candidates:
            if not any(x < t[2] and t[0] < x + width and y < t[3] and t[1] < y + height for t in taken):
                break
        return x, y, x + width, y + height


def _fit(draw: Any, label: str, suffix: str, font: Any, width: int) -> str:
    """Label and suffix, the label shortened until they fit."""
    text = label + suffix
    while draw.textlength(text, font=font) > width and len(label) > 1:
        label = label[:-2].rstrip() if label.endswith("\N{HORIZONTAL ELLIPSIS}") else label[:-1].rstrip()
        label += "\N{HORIZONTAL ELLIPSIS}"
        text = label + suffix
    return text


def _font(size: int, text: str) -> Any:
    """A font that has the letters of `text`: Pillow's own for western ones, else one of the system's."""
    from PIL import ImageFont

    if any(ord(c) > 0x24F and c != "\N{HORIZONTAL ELLIPSIS}" for c in text):
        for name in ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "arial.ttf"):
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


class ContactSheet:
    """A few frames of a video side by side. Memory stays bounded however long the video is.

    Every `step`-th picture is kept; when twice as many as needed are there, every second one goes and `step` doubles.
    """

    def __init__(self, count: int = 8, width: int = 480) -> None:
        self._count, self._width = count, width
        self._step, self._seen = 1, 0
        self._kept: list[np.ndarray] = []

    def add(self, picture: np.ndarray) -> None:
        """Offer the next picture, uint8 (H, W, 3)."""
        if self._seen % self._step == 0:
            from PIL import Image

            height = max(1, round(picture.shape[0] * self._width / picture.shape[1]))
            small = Image.fromarray(picture).resize((self._width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
            self._kept.append(np.asarray(small))
            if len(self._kept) > 2 * self._count:
                self._kept, self._step = self._kept[::2], self._step * 2
        self._seen += 1

    def render(self) -> np.ndarray | None:
        """The sheet, uint8 (H, W, 3): up to `count` pictures in two rows, or None without any picture."""
        if not self._kept:
            return None
        count = min(self._count, len(self._kept))
        chosen = [self._kept[round(i)] for i in np.linspace(0, len(self._kept) - 1, count)]
        columns = count if count <= 2 else -(-count // 2)
        gap, (height, width) = 4, chosen[0].shape[:2]
        rows = -(-count // columns)
        sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
        for i, picture in enumerate(chosen):
            y, x = i // columns * (height + gap), i % columns * (width + gap)
            sheet[y : y + height, x : x + width] = picture
        return sheet
