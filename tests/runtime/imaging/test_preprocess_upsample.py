"""Frame and mask operations against Pillow, torchvision's semantics and PyTorch's two-step interpolation."""

import numpy as np
import pytest
from PIL import Image

from runtime.errors import UserError
from runtime.imaging.antialias import resize_antialiased
from runtime.imaging.masks import boxes_and_areas, probability, surroundings
from runtime.imaging.preprocess import RESAMPLE, preprocess, resize_bytes, resized_size
from runtime.imaging.upsample import MaskUpsampler, enlarger

torch = pytest.importorskip("torch")
F = torch.nn.functional
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def normalised(picture_hwc):
    pixels = torch.tensor(np.array(picture_hwc)).permute(2, 0, 1).float().div(255)
    return ((pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]).numpy()


@pytest.mark.parametrize(
    "source, expected",
    [
        ((360, 640), (576, 1024)),
        ((480, 854), (575, 1024)),
        ((720, 405), (1024, 576)),
        ((256, 256), (1020, 1020)),
        ((1, 9000), (1, 1024)),
    ],
)
def test_resized_size_of_the_video_rule(source, expected):
    assert resized_size(*source) == expected


def test_resized_size_takes_a_manifest_entry():
    assert resized_size(90, 160, rule="samwise_video", short=252, max=256) == (144, 256)
    assert resized_size(90, 160, rule="square", short=0, max=1024) == (1024, 1024)


@pytest.mark.parametrize("arguments", [(0, 5), (5, 0), (5, 5, "fit")])
def test_resized_size_refuses(arguments):
    with pytest.raises(UserError):
        resized_size(*arguments)


@pytest.mark.parametrize(
    "source, target",
    [((45, 80), (144, 256)), ((300, 411), (187, 256)), ((256, 144), (256, 144)), ((400, 90), (200, 90))],
)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_preprocess_is_pillow_then_normalise_then_pad(source, target, resample):
    frame = np.random.default_rng(1).integers(0, 256, (*source, 3), dtype=np.uint8)
    out = np.full((3, 256, 256), np.nan, np.float32)
    result = preprocess(frame, target, 256, MEAN, STD, out, resample)
    assert result is out
    wide = Image.fromarray(frame).resize((target[1], source[0]), RESAMPLE[resample])
    expected = normalised(wide.resize(target[::-1], RESAMPLE[resample]))
    np.testing.assert_array_equal(out[:, : target[0], : target[1]], expected)
    assert not out[:, target[0] :].any() and not out[:, :, target[1] :].any()


@pytest.mark.parametrize("source", [(45, 80), (700, 333)])
def test_preprocess_float_is_torchvision_antialias(source):
    frame = np.random.default_rng(2).integers(0, 256, (*source, 3), dtype=np.uint8)
    pixels = torch.tensor(frame).permute(2, 0, 1)[None].float() / 255
    pixels = F.interpolate(pixels, (256, 256), mode="bilinear", antialias=True)[0]
    expected = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    result = preprocess(frame, (256, 256), 256, MEAN, STD, resample="float")
    np.testing.assert_allclose(result, expected.numpy(), atol=3e-6)


def test_preprocess_refuses_other_than_rgb_bytes():
    for frame in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        with pytest.raises(UserError, match="uint8"):
            preprocess(frame, (4, 4), 8, MEAN, STD)
    with pytest.raises(UserError, match="resample"):
        preprocess(np.zeros((4, 4, 3), np.uint8), (4, 4), 8, MEAN, STD, resample="lanczos")


@pytest.mark.parametrize("source", [(360, 640), (1080, 1920), (719, 405), (17, 1023), (1, 1)])
def test_upsampler_equals_two_interpolations(source):
    crop = resized_size(*source)
    low = np.random.default_rng(3).standard_normal((2, 256, 256)).astype(np.float32) * 5
    two_step = F.interpolate(torch.tensor(low)[:, None], (1024, 1024), mode="bilinear")[:, :, : crop[0], : crop[1]]
    two_step = F.interpolate(two_step, source, mode="bilinear")[:, 0].numpy()
    upsampler = MaskUpsampler(256, 1024, crop, source)
    logits = upsampler.logits(low)
    np.testing.assert_allclose(logits, two_step, atol=1e-5)
    masks = upsampler.masks(low)
    np.testing.assert_array_equal(masks, logits > 0)
    assert np.count_nonzero(masks != (two_step > 0)) <= 1 + masks.size // 100_000


def test_boxes_areas_and_packing():
    masks = np.zeros((3, 7, 9), bool)
    masks[0, 2:5, 3:9] = True
    masks[2, 6, 0] = True
    boxes, areas = boxes_and_areas(masks)
    assert boxes.tolist() == [[3, 2, 9, 5], [0, 0, 0, 0], [0, 6, 1, 7]] and areas.tolist() == [18, 0, 1]


def test_probability_of_any_logit():
    with np.errstate(over="raise"):
        np.testing.assert_allclose(
            probability(np.float32([-1e4, -1, 0, 1, 1e4])), [0, 0.2689414, 0.5, 0.7310586, 1], atol=1e-7
        )


@pytest.mark.parametrize("height, width", [(48, 64), (130, 90), (33, 47), (108, 70), (72, 108)])
def test_resize_of_bytes_equals_torch(height, width):
    """Larger, smaller, one side unchanged."""
    torch = pytest.importorskip("torch")
    frame = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None]
    want = torch.nn.functional.interpolate(image, size=(108, 108), mode="bilinear", antialias=True)
    assert np.array_equal(resize_bytes(frame, (108, 108)), want[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("height, width", [(48, 64), (300, 210)])
def test_half_is_bicubic_normalised_in_float16(height, width):
    frame = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wide = Image.fromarray(frame).resize((126, height), Image.Resampling.BICUBIC)
    square = np.asarray(wide.resize((126, 126), Image.Resampling.BICUBIC)).astype(np.float32) / np.float32(255)
    expected = (square.astype(np.float16) - np.float16(0.5)) / np.float16(0.5)
    result = preprocess(frame, (126, 126), 126, [0.5] * 3, [0.5] * 3, resample="half")
    assert np.array_equal(result, expected.transpose(2, 0, 1).astype(np.float32))


SHRINKS = [((96, 96), (24, 40)), ((24, 40), (72, 72)), ((200, 130), (36, 36)), ((90, 41), (33, 72))]


@pytest.mark.parametrize("source, target", SHRINKS)
def test_antialiased_resize_equals_torch_in_every_bit(source, target):
    """Of blocks, whose edges cancel to zero or nearly, and of noise."""
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(3)
    blocks = np.where(np.kron(draw.random((2, 25, 25)) > 0.5, np.ones((8, 8), bool)), 1024, -1024)
    for planes in (blocks[:, : source[0], : source[1]], draw.standard_normal((2, *source))):
        planes = planes.astype(np.float32)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(planes)[None], size=target, mode="bilinear", antialias=True
        )
        assert np.array_equal(resize_antialiased(planes, target), expected[0].numpy())


def test_enlargement_of_the_part_where_pixels_are_on():
    """It has the pixels of the enlargement of the whole, in objects at the edge, of one cell, and of noise."""
    draw = np.random.default_rng(5)
    for _ in range(30):
        logits = np.full((1, 96, 96), -3, np.float32)
        (top, left), (height, width) = draw.integers(-4, 96, 2).clip(0), draw.integers(1, 40, 2)
        place = logits[0, top : top + height, left : left + width]
        place[:] = 5 * draw.standard_normal(place.shape)
        rows, columns = surroundings((logits > 0).any(0), 32)
        part = logits[:, rows, columns]
        whole, found = enlarger(96, 96, 4).masks(logits)[0], np.zeros((384, 384), bool)
        down, across = 4 * part.shape[1], 4 * part.shape[2]
        found[4 * rows.start :, 4 * columns.start :][:down, :across] = enlarger(*part.shape[1:], 4).masks(part)[0]
        assert np.array_equal(found, whole)
