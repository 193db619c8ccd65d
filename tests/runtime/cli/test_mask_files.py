"""Mask files of every kind: one or several objects, as numbers, palettes, colours, grey levels or alpha."""

import json

import numpy as np
import pytest
from PIL import Image

from runtime import PromptError
from runtime.cli.mask_files import read_masks
from runtime.cli.overlay import palette
from runtime.cli.prompt_args import parse_prompt_set

HEIGHT, WIDTH = 48, 64
Y, X = np.mgrid[:HEIGHT, :WIDTH]
DISTANCE = 12.3 - np.hypot(X - 20, Y - 20)
DISC = DISTANCE > 0
SQUARE = (abs(X - 50) < 8) & (abs(Y - 30) < 8)
NUMBERS = np.where(DISC, 1, np.where(SQUARE, 2, 0)).astype(np.uint8)
COVERAGE = (DISTANCE + 0.5).clip(0, 1)
DAVIS, GREYS = palette().ravel().tolist(), np.arange(256).repeat(3).tolist()


def grey(array):
    return Image.fromarray(np.asarray(array, np.uint8))


def indexed(array, rgb=DAVIS):
    image = Image.fromarray(np.asarray(array, np.uint8), "P")
    image.putpalette(rgb)
    return image


def coloured(*colours, background=(0, 0, 0)):
    """An image of the disc and the square in these colours."""
    array = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    array[:] = background
    for where, colour in zip((DISC, SQUARE), colours, strict=False):
        array[where] = colour
    return Image.fromarray(array)


def with_alpha(colour, inside, alpha):
    array = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    array[inside] = (*colour, 0)
    array[..., 3] = alpha
    return Image.fromarray(array)


def photograph(seed=0):
    return np.random.default_rng(seed).integers(1, 256, (HEIGHT, WIDTH, 3), np.uint8)


def read(image, tmp_path, name="mask.png", **options):
    image.save(tmp_path / name, **options)
    return read_masks(tmp_path / name)


ONE_OBJECT = {
    "1 bit": Image.fromarray(DISC),
    "0 and 255": grey(DISC * 255),
    "0 and 1": grey(DISC),
    "0 and 128": grey(DISC * 128),
    "16 bits, 0 and 1": Image.fromarray(DISC.astype(np.uint16)),
    "16 bits, 0 and 65535": Image.fromarray(DISC.astype(np.uint16) * 65535),
    "soft edges": grey(np.round(COVERAGE * 255)),
    "soft edges of few levels": grey(np.round(COVERAGE * 4) * 63),
    "soft edges, 16 bits": Image.fromarray(np.round(COVERAGE * 65535).astype(np.uint16)),
    "probabilities": grey(np.round(255 / (1 + np.exp(-DISTANCE / 2)))),
    "palette of black and white": indexed(DISC, [0, 0, 0, 255, 255, 255]),
    "palette of white and black": indexed(~DISC, [255, 255, 255, 0, 0, 0]),
    "palette of greys, soft edges": indexed(
        np.round(COVERAGE * 3), [0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255]
    ),
    "palette of greys, index 255": indexed(DISC * 255, GREYS),
    "DAVIS palette, index 255": indexed(DISC * 255),
    "colour": coloured((255, 0, 0)),
    "white": coloured((255, 255, 255)),
    "colour with soft edges": Image.fromarray(np.round(COVERAGE[..., None] * [0, 200, 100]).astype(np.uint8)),
    "grey in three channels, soft edges": Image.fromarray(np.round(COVERAGE * 255).astype(np.uint8)).convert("RGB"),
    "colour, CMYK": coloured((255, 255, 255)).convert("CMYK"),
    "alpha alone": with_alpha((0, 0, 0), DISC, DISC * 255),
    "alpha alone, white": with_alpha((255, 255, 255), X >= 0, DISC * 255),
    "alpha with soft edges": with_alpha((255, 255, 255), X >= 0, np.round(COVERAGE * 255)),
    "colour on transparent": with_alpha((0, 255, 0), DISC, DISC * 255),
    "white, opaque everywhere": with_alpha((255, 255, 255), DISC, 255),
    "grey and alpha": with_alpha((255, 255, 255), X >= 0, DISC * 255).convert("LA"),
    "photograph cut out": Image.fromarray(np.dstack([photograph(), DISC * np.uint8(255)])),
    "photograph on black": Image.fromarray(photograph() * DISC[..., None]),
}


@pytest.mark.parametrize("kind", ONE_OBJECT)
def test_masks_of_one_object(kind, tmp_path):
    masks, _ = read(ONE_OBJECT[kind], tmp_path, "mask.tif" if ONE_OBJECT[kind].mode == "CMYK" else "mask.png")
    ((label, mask),) = masks.items()
    assert mask.dtype == bool and mask.shape == (HEIGHT, WIDTH) and (mask == DISC).mean() > 0.98
    assert label == (0 if kind != "colour" else "#ff0000")


@pytest.mark.parametrize("name", ["mask.jpg", "mask.webp", "mask.bmp", "mask.gif", "mask.tif", "mask.pgm"])
def test_masks_in_other_formats(name, tmp_path):
    masks, _ = read(grey(DISC * 255), tmp_path, name)
    assert masks.keys() == {0} and (masks[0] == DISC).mean() > 0.99


def test_mask_of_floating_point_numbers(tmp_path):
    masks, _ = read(Image.fromarray(COVERAGE.astype(np.float32)), tmp_path, "mask.tif")
    assert masks.keys() == {0} and (masks[0] == DISC).mean() > 0.99


def test_mask_is_turned_as_its_orientation_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    masks, _ = read(grey(DISC * 255), tmp_path, exif=exif)
    assert (masks[0] == np.rot90(DISC, -1)).all()


SEVERAL = {
    "DAVIS": (indexed(NUMBERS), [1, 2]),
    "DAVIS with gaps": (indexed(NUMBERS * 3), [3, 6]),
    "palette without colours": (indexed(NUMBERS, [0] * 768), [1, 2]),
    "palette of greys": (indexed(NUMBERS, GREYS), [1, 2]),
    "palette of black, white and grey": (indexed(NUMBERS, [0, 0, 0, 255, 255, 255, 128, 128, 128]), [1, 2]),
    "numbers": (grey(NUMBERS), [1, 2]),
    "numbers in 16 bits": (Image.fromarray(NUMBERS.astype(np.uint16)), [1, 2]),
    "numbers in 32 bits": (Image.fromarray(NUMBERS.astype(np.int32)), [1, 2]),
    "numbers in three channels": (grey(NUMBERS).convert("RGB"), [1, 2]),
    "DAVIS in RGB": (indexed(NUMBERS).convert("RGB"), [1, 2]),
    "DAVIS in RGBA": (indexed(NUMBERS).convert("RGBA"), [1, 2]),
    "colours": (coloured((255, 0, 0), (0, 0, 255)), ["#ff0000", "#0000ff"]),
    "colour and white": (coloured((255, 255, 255), (0, 0, 255)), ["#ffffff", "#0000ff"]),
    "two shades": (coloured((255, 0, 0), (100, 0, 0)), ["#ff0000", "#640000"]),
    "palette with black elsewhere": (
        indexed(np.where(DISC, 0, np.where(SQUARE, 1, 2)), [255, 0, 0, 0, 0, 255, 0, 0, 0]),
        ["#ff0000", "#0000ff"],
    ),
    "colours on transparent": (
        Image.fromarray(np.dstack([np.asarray(coloured((255, 0, 0), (0, 0, 255), background=(9, 9, 9))),
                                   (NUMBERS > 0) * np.uint8(255)])),
        ["#ff0000", "#0000ff"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEVERAL)
def test_masks_of_several_objects(kind, tmp_path):
    image, labels = SEVERAL[kind]
    masks, notes = read(image, tmp_path, "mask.tif" if image.mode == "I" else "mask.png")
    assert list(masks) == labels and notes == []
    assert (masks[labels[0]] == DISC).all() and (masks[labels[1]] == SQUARE).all()


@pytest.mark.parametrize("make", [indexed, grey, lambda array: indexed(array).convert("RGB")])
def test_void_regions_are_left_out(make, tmp_path):
    array = np.where((abs(DISTANCE) < 1) & ~SQUARE, 255, NUMBERS)
    masks, (note,) = read(make(array), tmp_path)
    assert {label: int(mask.sum()) for label, mask in masks.items()} == {1: (array == 1).sum(), 2: (array == 2).sum()}
    assert "mask.png" in note and "255 is left out" in note


def test_transparent_background_of_a_palette(tmp_path):
    masks, _ = read(indexed(NUMBERS), tmp_path, transparency=0)
    assert list(masks) == [1, 2]
    rgb = [9, 9, 9, 0, 0, 255, 255, 0, 0]
    masks, _ = read(indexed(np.where(DISC, 2, np.where(SQUARE, 1, 0)), rgb), tmp_path, transparency=0)
    assert list(masks) == ["#ff0000", "#0000ff"]


@pytest.mark.parametrize(
    "image, name, error",
    [
        (grey(NUMBERS * 100), "mask.png", r"areas of the grey values \[100, 200\]; number the objects"),
        (grey(NUMBERS), "mask.jpg", "a JPEG changes the numbers"),
        (coloured((255, 0, 0), (0, 0, 255)), "mask.jpg", "a JPEG changes the colours"),
        (coloured((255, 0, 0), (0, 0, 255), background=(255, 255, 255)), "mask.png", "without a black background"),
        (coloured((255, 0, 0), (0, 0, 255)).resize((90, 70), Image.Resampling.BICUBIC), "mask.png", "smooth edges"),
        (Image.fromarray(photograph()), "mask.png", "3072 colours.*save a PNG of 0 and 255"),
        (Image.fromarray(np.where(DISC, np.nan, 0).astype(np.float32)), "mask.tif", "not finite"),
        (grey(NUMBERS * 0), "mask.png", "empty"),
        (indexed(NUMBERS * 0), "mask.png", "empty"),
        (with_alpha((255, 0, 0), DISC, 0), "mask.png", "empty"),
    ],
)
def test_images_that_are_no_masks(image, name, error, tmp_path):
    image.save(tmp_path / name)
    with pytest.raises(PromptError, match=error) as caught:
        parse_prompt_set([("--mask", str(tmp_path / name))])
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_mask_file_of_several_pages(tmp_path):
    grey(DISC).save(tmp_path / "stack.tif", save_all=True, append_images=[grey(SQUARE)])
    with pytest.raises(PromptError, match="stack.tif: 2 pages"):
        read_masks(tmp_path / "stack.tif")


def objects(prompts):
    """Frame -> object id -> sum of x over the pixels of its mask, which tells masks apart."""
    return {
        frame: {obj: int(X[part.array].sum()) for obj, (part,) in entries.items()}
        for frame, entries in prompts.prompts.items()
    }


A, B = int(X[DISC].sum()), int(X[SQUARE].sum())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    indexed(NUMBERS).save("both.png")
    indexed(SQUARE * 2).save("second.png")
    indexed(DISC).save("disc.png")
    indexed(SQUARE).save("square.png")
    grey(DISC * 255).save("white_disc.png")
    coloured((255, 0, 0), (0, 0, 255)).save("colours.png")
    coloured((0, 0, 0), (0, 0, 255)).save("blue.png")
    return tmp_path


@pytest.mark.parametrize(
    "values, want",
    [
        (["both.png"], {0: {1: A, 2: B}}),
        (["both.png@3"], {3: {1: A, 2: B}}),
        (["second.png"], {0: {2: B}}),
        (["both.png", "second.png@5"], {0: {1: A, 2: B}, 5: {2: B}}),
        (["both.png", "both.png@5"], {0: {1: A, 2: B}, 5: {1: A, 2: B}}),
        (["both.png#2", "both.png@4#1"], {0: {2: B}, 4: {1: A}}),
        (["disc.png", "square.png"], {0: {1: A, 2: B}}),
        (["disc.png", "square.png@5"], {0: {1: A}, 5: {2: B}}),
        (["disc.png#7", "white_disc.png"], {0: {7: A, 8: A}}),
        (["both.png", "white_disc.png"], {0: {1: A, 2: B, 3: A}}),
        (["colours.png", "blue.png@5"], {0: {1: A, 2: B}, 5: {2: B}}),
        (["white_disc.png", "colours.png@5"], {0: {1: A}, 5: {2: A, 3: B}}),
        (["white_disc.png@1", "white_disc.png@2", "blue.png@3"], {1: {1: A}, 2: {2: A}, 3: {3: B}}),
    ],
)
def test_ids_of_the_objects(folder, values, want):
    assert objects(parse_prompt_set([("--mask", value) for value in values])) == want


@pytest.mark.parametrize(
    "values, error",
    [
        (["both.png#5"], "both.png: holds the objects 1, 2; omit the id 5"),
        (["colours.png#1"], "holds the objects #ff0000, #0000ff"),
        (["both.png", "both.png"], "object 1 already has a box or mask on frame 0"),
    ],
)
def test_ids_that_do_not_fit(folder, values, error):
    with pytest.raises(PromptError, match=error):
        parse_prompt_set([("--mask", value) for value in values])


def test_mask_files_of_a_prompt_file(folder):
    entries = [{"mask": "both.png", "name": "thing"}, {"mask": "second.png", "frame": 4.0}, {"box": [0, 0, 9, 9]}]
    (folder / "p.json").write_text(json.dumps(entries))
    prompts = parse_prompt_set([("--prompts", "p.json")])
    assert prompts.labels == {1: "thing 1", 2: "thing 2", 3: "object 3"}
    assert list(prompts.prompts[4]) == [2]


def test_numbers_of_colours_are_noted(folder):
    (note,) = parse_prompt_set([("--mask", "colours.png")]).notes
    assert note == "colours.png: #ff0000 is object 1, #0000ff is object 2"
