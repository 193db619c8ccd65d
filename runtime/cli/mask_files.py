"""Mask images: black and white, with soft edges, numbered objects, palettes, flat colours, or alpha.

An image of several objects gives a mask for each, by its label: an index of a palette or a grey value (int), or a
colour ("#ff0000"). The background is black, index 0, or transparent.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PromptError, VideoError
from ..media.image_files import count_pages, open_image
from ..media.image_sources import missing
from ..prompts.mask_values import NO_LABEL, masks_by_label
from .overlay import palette

if TYPE_CHECKING:
    from PIL import Image

Masks = dict[Any, np.ndarray]
"""Label -> mask, bool (H,W)."""

VOID = 255
"""Index of a palette for regions that belong to no object, in DAVIS, YouTube-VOS and PASCAL VOC."""

MAX_COLOURS = 64
"""Number of colours that may be objects; an image of more is a photograph, or has smooth edges."""

MAX_COLOUR_NOISE = 16
"""Difference between colours that compression causes."""

TEXTURE = 0.2
"""Share of pixels like all their neighbours that a photograph does not reach."""

HOW_TO_SAVE = "save a PNG of 0 and 255, of object numbers 1, 2, 3, or of a flat colour per object on black"


def read_masks(path: Path) -> tuple[Masks, list[str]]:
    """Read the masks of an image by label, `NO_LABEL` for one object, and notes about it. Raises PromptError."""
    notes: list[str] = []
    if not path.exists():
        raise PromptError(missing(path))
    try:
        if (pages := count_pages(path)) > 1:
            raise PromptError(f"{pages} pages or frames; give one image per frame, with the numbers of all its objects")
        with open_image(path) as image:
            masks = _split(image, path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif"), notes)
        if not any(mask.any() for mask in masks.values()):
            raise PromptError("the mask is empty: no pixel of it is inside an object")
    except VideoError as error:
        raise PromptError(str(error)) from None
    except PromptError as error:
        raise PromptError(f"{path}: {error}") from None
    return masks, [f"{path}: {note}" for note in notes]


def _split(image: Image.Image, is_lossy: bool, notes: list[str]) -> Masks:
    is_transparent = "transparency" in image.info
    if image.mode == "P" and not (is_transparent and any((image.getpalette("RGB") or [])[:3])):
        return _split_palette(np.asarray(image), image.getpalette("RGB") or [], notes)
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return _split_grey(np.asarray(image), is_lossy, notes)
    if is_transparent or image.mode.lower().endswith("a"):
        rgba = np.asarray(image.convert("RGBA"))
        return _split_alpha(rgba[..., :3], rgba[..., 3] > 127, notes)
    return _split_colours(np.asarray(image.convert("RGB")), is_lossy, notes)


def _split_palette(index_hw: np.ndarray, rgb: list[int], notes: list[str]) -> Masks:
    table = np.zeros((256, 3), np.uint8)
    table.flat[: len(rgb)] = rgb
    used = np.unique(index_hw)
    if len(np.unique(table[used], axis=0)) == len(used):  # else the colours are meaningless
        if (table[used] == table[used, :1]).all():
            with contextlib.suppress(PromptError):  # areas of greys: the indices are the numbers
                masks = masks_by_label(table[index_hw, 0])
                if NO_LABEL in masks:
                    return masks
        elif table[0].any() and not table[used].any(axis=1).all():  # black, the background, has another index
            return _split_colours(table[index_hw], False, notes)
    labels = [int(label) for label in used if label not in (0, VOID)]
    if not labels:
        return {NO_LABEL: index_hw > 0}
    if VOID in used:
        notes.append(f"index {VOID} is left out: the void label of DAVIS, no object")
    return {label: index_hw == label for label in labels}


def _split_grey(values_hw: np.ndarray, is_lossy: bool, notes: list[str]) -> Masks:
    high = values_hw.max()
    if is_lossy:
        if 0 < high < 128:
            raise PromptError(f"a JPEG changes the numbers of objects; {HOW_TO_SAVE}")
        return {NO_LABEL: values_hw > 127}
    masks = masks_by_label(values_hw)
    if NO_LABEL not in masks and high not in masks:
        notes.append(f"the value {high} is left out: the void label of DAVIS, no object")
    return masks


def _split_alpha(rgb_hwc: np.ndarray, is_opaque_hw: np.ndarray, notes: list[str]) -> Masks:
    colours = np.unique(rgb_hwc[is_opaque_hw], axis=0)
    if not is_opaque_hw.all() and not 1 < len(colours) <= MAX_COLOURS:  # one colour, or a photograph cut out
        return {NO_LABEL: is_opaque_hw}
    return _split_colours(np.where(is_opaque_hw[..., None], rgb_hwc, 0).astype(np.uint8), False, notes)


def _split_colours(rgb_hwc: np.ndarray, is_lossy: bool, notes: list[str]) -> Masks:
    number_hw = rgb_hwc.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    numbers, first, inverse = np.unique(number_hw, return_index=True, return_inverse=True)
    colours = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], 1)
    brightest = colours[colours.max(1).argmax()]
    is_grey = np.ptp(colours, axis=1).max() <= MAX_COLOUR_NOISE
    davis = {int(c[0]) << 16 | int(c[1]) << 8 | int(c[2]): i for i, c in enumerate(palette())}
    if not is_grey and davis.keys() >= set(numbers.tolist()):
        index = np.array([davis[number] for number in numbers.tolist()], np.uint8)
        return _split_palette(index[inverse].reshape(number_hw.shape), palette().ravel().tolist(), notes)
    one_hue = colours.max(1)[:, None] * brightest // max(int(brightest.max()), 1)
    if np.abs(colours - one_hue).max() <= MAX_COLOUR_NOISE:
        if is_grey:
            return _split_grey(rgb_hwc.max(2), is_lossy, notes)
        scaled = rgb_hwc.max(2).astype(np.uint16) * 255 // brightest.max()
        if is_lossy:
            return {NO_LABEL: scaled > 127}
        with contextlib.suppress(PromptError):  # areas of two shades: two objects
            if len(numbers) > 2 and NO_LABEL in (masks := masks_by_label(scaled)):
                return masks
    if is_lossy:
        raise PromptError(f"a JPEG changes the colours of objects; {HOW_TO_SAVE}")
    return _split_flat_colours(number_hw, numbers[np.argsort(first)], notes)


def _split_flat_colours(number_hw: np.ndarray, numbers: np.ndarray, notes: list[str]) -> Masks:
    """Split by colour, as the number 0xrrggbb. `numbers`: those of the image, in the order in which they appear."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(number_hw, 1, mode="edge"), (3, 3))
    is_flat = (windows == number_hw[..., None, None]).all(axis=(2, 3))
    objects = [int(number) for number in numbers if number]
    num_flat = len(np.unique(number_hw[is_flat]))
    if len(objects) < len(numbers) or len(numbers) == 1:
        if len(objects) <= MAX_COLOURS and len(numbers) <= 2 * num_flat:
            return {f"#{number:06x}": number_hw == number for number in objects}
        if len(objects) > MAX_COLOURS and is_flat[number_hw > 0].mean() < TEXTURE:
            notes.append("a photograph on black: all that is not black is the object")
            return {NO_LABEL: number_hw > 0}
    raise PromptError(f"{len(objects)} colours, without a black background or with smooth edges; {HOW_TO_SAVE}")
