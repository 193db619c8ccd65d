"""Overlay drawing: translucent masks, contours and labels on a frame; contact sheets.

Colours are those of the DAVIS annotations (the palette of PASCAL VOC), so overlays and indexed masks use the same
colour per object. Pillow is imported when the first frame is drawn.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..metrics import contour, dilate
from ..results import Result

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Corners = tuple[int, int, int, int]
"""x0, y0, x1, y1."""

FILL_ALPHA = 115
"""Opacity of the fill, of 256."""

MIN_SIDE = 480
"""Overlays of smaller videos are enlarged by an integer factor to at least this short side, so that labels fit."""

MAX_SIDE = 3840
"""Overlays of larger videos are scaled down to this long side, because many players stop at 4K."""


LEVELS = np.arange(256, dtype=np.uint16)
"""Values of a channel."""

GOLDEN_RATIO = (5**0.5 - 1) / 2

FAMILY_SHADES = ((1.0, 1.0), (0.5, 1.0), (1.0, 0.7))
"""Saturation and value of the objects of a concept, in turn."""


def palette() -> np.ndarray:
    """Return the DAVIS palette, uint8 (256, 3).

    Bits 0, 3, 6 of an index are the top bits of red, 1, 4, 7 those of green, 2, 5 those of blue.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for bit in range(8):
            source = 3 * bit + channel
            if source < 8:
                colours[:, channel] |= ((index >> source & 1) << 7 - bit).astype(np.uint8)
    return colours


class ObjectColours:
    """Bright colours of objects: one of the palette for each id, or of concepts a family of hues for each.

    labels    prompt id -> label
    concepts  prompts are concepts, of several objects each
    """

    def __init__(self, labels: Mapping[int, str], concepts: bool = False) -> None:
        self._count = len(labels) if concepts else 0
        bright = palette().astype(np.float64)
        # the first colours of the palette have half the maximum brightness: good for fills, too dark for thin lines
        self._palette = (bright * 255 / np.maximum(bright.max(axis=1, keepdims=True), 1)).astype(np.uint8)

    def __call__(self, prompt: int, obj: int) -> np.ndarray:
        """Return the colour of an object, uint8 RGB (3,)."""
        if not self._count:
            chosen: np.ndarray = self._palette[obj % 256]
            return chosen
        # a golden ratio apart, hues of successive objects differ; a gap of a third separates families
        hue = (prompt - 1 + obj * GOLDEN_RATIO % 1 * 2 / 3) / self._count
        rgb = colorsys.hsv_to_rgb(hue % 1, *FAMILY_SHADES[obj % len(FAMILY_SHADES)])
        return np.round(np.multiply(rgb, 255)).astype(np.uint8)

    def of(self, prompts: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Return the colour of each object; `prompts`: object id -> prompt id."""
        return {obj: self(prompt, obj) for obj, prompt in prompts.items()}


def draw_order(result: Result, small_on_top: bool = False) -> np.ndarray:
    """Return the rows of the objects from the bottom to the top: by score, or by area, the smallest on top."""
    keys = -result.masks.sum(axis=(1, 2)) if small_on_top else result.scores
    return np.argsort(keys, kind="stable")


def index_map(result: Result, small_on_top: bool = False) -> np.ndarray:
    """Return the object id per pixel, uint8 (H, W), 0 for the background and for ids above 255.

    Objects overlap in `draw_order`.
    """
    indexed = np.zeros(result.masks.shape[1:], np.uint8)
    for k in draw_order(result, small_on_top):
        if result.object_ids[k] > 255:
            continue
        indexed[result.masks[k]] = result.object_ids[k]
    return indexed


class Painter:
    """Draws the results of one video.

    size          (height, width) of the source
    labels        prompt id -> label; objects of other prompts have none
    small_on_top  whether smaller masks cover larger ones
    concepts      prompts are concepts: labels have the id of the object, colours are a family for each
    canvas        (height, width) of the drawn images: even, as H.264 requires, and large enough to read the labels
    """

    def __init__(
        self, size: tuple[int, int], labels: Mapping[int, str], small_on_top: bool = False, concepts: bool = False
    ) -> None:
        self._small_on_top, self._has_ids, self._colours = small_on_top, concepts, ObjectColours(labels, concepts)
        self._labels = {prompt: " ".join(label.split()) for prompt, label in labels.items()}
        height, width = size
        scale = max(1, min(-(-MIN_SIDE // min(size)), MAX_SIDE // max(size))) * min(1.0, MAX_SIDE / max(size))
        self._scaled = (max(1, round(height * scale)), max(1, round(width * scale)))
        self.canvas = (self._scaled[0] + self._scaled[0] % 2, self._scaled[1] + self._scaled[1] % 2)
        self._unit = max(1, round(min(self._scaled) / 360))

    def __call__(self, frame: np.ndarray, result: Result) -> np.ndarray:
        """Draw the objects on a copy of `frame`, uint8 (H, W, 3), enlarged to uint8 (*canvas, 3)."""
        image = self._enlarge(frame)
        boxes = []
        for k in draw_order(result, self._small_on_top):
            if result.masks[k].any():
                colour = self._colours(result.prompt_ids[k], result.object_ids[k])
                boxes.append((int(k), self._draw_mask(image, self._enlarge_mask(result.masks[k]), colour)))
        if boxes:
            self._draw_labels(image, sorted(boxes), result)
        below, right = (whole - part for whole, part in zip(self.canvas, image.shape[:2], strict=True))
        return np.pad(image, ((0, below), (0, right), (0, 0)), "edge")

    def _enlarge(self, frame: np.ndarray) -> np.ndarray:
        if self._scaled == frame.shape[:2]:
            return np.array(frame)
        from PIL import Image

        return np.array(Image.fromarray(frame).resize(self._scaled[::-1], Image.Resampling.BICUBIC))

    def _enlarge_mask(self, mask: np.ndarray) -> np.ndarray:
        """Return a mask that is not empty at the size of the drawing."""
        factor = self._scaled[0] // mask.shape[0]
        if factor <= 1:
            return _resize(mask, self._scaled)
        # a pixel reaches its neighbours only
        rows, columns = _around(np.any(mask, axis=1)), _around(np.any(mask, axis=0))
        size = (rows.stop - rows.start) * factor, (columns.stop - columns.start) * factor
        enlarged = np.zeros(self._scaled, bool)
        y, x = rows.start * factor, columns.start * factor
        enlarged[y : y + size[0], x : x + size[1]] = _resize(mask[rows, columns], size)
        return enlarged

    def _draw_mask(self, image: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> Corners:
        """Fill and outline one mask in place. Returns its box."""
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        if not len(rows):
            return 0, 0, 0, 0
        y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        margin = 3 * self._unit
        window = (slice(max(0, y0 - margin), y1 + margin), slice(max(0, x0 - margin), x1 + margin))
        part, inside = image[window], mask[window]
        edge = contour(inside)
        rim, line = dilate(edge, 2 * self._unit), dilate(edge, self._unit)
        filled = (LEVELS[:, None] * (256 - FILL_ALPHA) + colour.astype(np.uint16) * FILL_ALPHA >> 8).astype(np.uint8)
        for channel in range(3):  # faster than all at once, where the pixels lie apart
            values = part[..., channel]
            np.copyto(values, filled[:, channel][values], where=inside)
            np.copyto(values, values >> 1, where=rim)  # it keeps the line visible on any background
            np.copyto(values, colour[channel], where=line)
        return x0, y0, x1, y1

    def _draw_labels(self, image: np.ndarray, boxes: list[tuple[int, Corners]], result: Result) -> None:
        """Draw the labels of objects in place. `boxes`: their rows in the result, and where they are."""
        from PIL import Image, ImageDraw

        measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        taken: list[Corners] = []
        for k, box in boxes:
            label = self._labels.get(result.prompt_ids[k])
            if label is None:
                continue
            font = _font(max(13, round(min(self._scaled) / 26)), label)
            suffix = f" {result.object_ids[k]}" * self._has_ids + f"  {result.scores[k]:.2f}"
            text = _fit(measure, label, suffix, font, self._scaled[1] - 4 * self._unit)
            tag = self._place(measure.textbbox((0, 0), text, font=font), box, taken)
            taken.append(tag)
            red, green, blue = self._colours(result.prompt_ids[k], result.object_ids[k]).tolist()
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 120
            ink = (255, 255, 255) if is_dark else (0, 0, 0)
            _draw_tag(image, tag, text, font, (red, green, blue), ink)

    def _place(self, extent: tuple[float, ...], box: Corners, taken: list[Corners]) -> Corners:
        """Return the box of a label: above its object, else below it, else where no other label is."""
        pad = 3 * self._unit
        width, height = round(extent[2] - extent[0]) + 2 * pad, round(extent[3] - extent[1]) + 2 * pad
        x = int(np.clip((box[0] + box[2]) // 2 - width // 2, 0, max(0, self._scaled[1] - width)))
        last = max(0, self._scaled[0] - height)
        above, below = box[1] - height - pad, box[3] + pad
        candidates = [y for y in (above, below) if 0 <= y <= last]
        candidates += [int(np.clip(y, 0, last)) for y in (box[1], *range(0, last + 1, height))]
        for y in candidates:
            if not any(x < t[2] and t[0] < x + width and y < t[3] and t[1] < y + height for t in taken):
                break
        return x, y, x + width, y + height


def _resize(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a bool mask at another size (height, width)."""
    if size == mask.shape:
        return mask
    from PIL import Image

    image = Image.fromarray(mask.astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image) > 127


def _around(occupied: np.ndarray) -> slice:
    """Return where a row of bool is set, with two more on each side."""
    (where,) = occupied.nonzero()
    return slice(max(0, int(where[0]) - 2), min(len(occupied), int(where[-1]) + 3))


def _draw_tag(
    image: np.ndarray, tag: Corners, text: str, font: Font, fill: tuple[int, int, int], ink: tuple[int, int, int]
) -> None:
    """Draw a filled box and a text in its middle on an image (H,W,3), in place."""
    from PIL import Image, ImageDraw

    middle = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
    written = ImageDraw.Draw(Image.new("RGB", (1, 1))).textbbox(middle, text, font=font, anchor="mm")
    # only that part of the image is converted to Pillow's pixels and back
    x0, y0 = (max(0, min(tag[i], int(written[i]) - 1)) for i in (0, 1))
    x1, y1 = (max(tag[i], int(written[i]) + 2) for i in (2, 3))
    part = image[y0:y1, x0:x1]
    canvas = Image.fromarray(part)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((tag[0] - x0, tag[1] - y0, tag[2] - x0 - 1, tag[3] - y0 - 1), fill=fill)
    draw.text((middle[0] - x0, middle[1] - y0), text, font=font, anchor="mm", fill=ink)
    part[:] = np.asarray(canvas)


def _fit(draw: ImageDraw.ImageDraw, label: str, suffix: str, font: Font, width: int) -> str:
    """Return label and suffix, with the label shortened until they fit."""
    text = label + suffix
    while draw.textlength(text, font=font) > width and len(label) > 1:
        label = label[:-2].rstrip() if label.endswith("\N{HORIZONTAL ELLIPSIS}") else label[:-1].rstrip()
        label += "\N{HORIZONTAL ELLIPSIS}"
        text = label + suffix
    return text


def _font(size: int, text: str) -> Font:
    """Return a font that covers `text`: Pillow's own for Latin letters, else one of the system."""
    from PIL import ImageFont

    if any(ord(c) > 0x24F and c != "\N{HORIZONTAL ELLIPSIS}" for c in text):
        for name in ("NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "arial.ttf"):
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


class ContactSheet:
    """A few frames of a video side by side, in bounded memory.

    Every `step`-th image is kept; at more than twice the number needed, every second one is dropped and `step` doubles.
    """

    def __init__(self, count: int = 8, width: int = 480, sample_aspect_ratio: float = 1.0) -> None:
        self._count, self._width, self._sample_aspect_ratio = count, width, sample_aspect_ratio
        self._step, self._seen = 1, 0
        self._kept: list[np.ndarray] = []

    def add(self, image: np.ndarray) -> None:
        """Add the next image, uint8 (H, W, 3)."""
        if self._seen % self._step == 0:
            from PIL import Image

            height = max(1, round(image.shape[0] * self._width / (image.shape[1] * self._sample_aspect_ratio)))
            small = Image.fromarray(image).resize((self._width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
            self._kept.append(np.asarray(small))
            if len(self._kept) > 2 * self._count:
                self._kept, self._step = self._kept[::2], self._step * 2
        self._seen += 1

    def render(self) -> np.ndarray | None:
        """Return the sheet, uint8 (H, W, 3): up to `count` images in two rows. None without images."""
        if not self._kept:
            return None
        count = min(self._count, len(self._kept))
        chosen = [self._kept[round(i)] for i in np.linspace(0, len(self._kept) - 1, count)]
        columns = count if count <= 2 else -(-count // 2)
        gap, (height, width) = 4, chosen[0].shape[:2]
        rows = -(-count // columns)
        sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
        for i, image in enumerate(chosen):
            y, x = i // columns * (height + gap), i % columns * (width + gap)
            sheet[y : y + height, x : x + width] = image
        return sheet
