"""Pictures on a toy bundle: prompts, batches, mask input; the parts of automatic masks; regions and suppression."""

import numpy as np
import pytest

import runtime
from helpers import toy_sam2
from runtime.imaging.masks import suppress
from runtime.imaging.morphology import components, fill_holes, without_small_regions
from runtime.models.sam2.automatic_masks import crop_boxes, grid
from runtime.tracking.prompt_inputs import square_mask

HEIGHT, WIDTH = 24, 36


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def engine(toy_sam2_bundle):
    with runtime.load(toy_sam2_bundle) as engine:
        yield engine


def test_candidates_and_the_single_mask(engine, picture):
    image = engine.image(picture)
    masks, scores, low = image.predict(points=[[5, 5]], labels=[1])
    assert masks.shape == (3, HEIGHT, WIDTH) and masks.dtype == bool and scores.shape == (3,) and low.shape == (3, 8, 8)
    np.testing.assert_allclose(low[1] - low[0], -0.5, atol=1e-5)  # the toy's candidates differ by fixed offsets
    masks, scores, one = image.predict(points=[[5, 5]], labels=[1], multimask=False)
    assert masks.shape == (1, HEIGHT, WIDTH) and scores.shape == (1,)
    np.testing.assert_allclose(one[0], low[0] - 0.25, atol=1e-5)


def test_no_object_score_gate(engine, picture):
    _, _, low = engine.image(picture // 8).predict(points=[[5, 5]], labels=[1])
    assert low.min() > -32, "a picture's masks are never blanked out, and logits are clamped"


def test_the_same_prompt_in_pixels_and_normalised(engine, picture):
    image = engine.image(picture)
    a = image.predict(points=[[9, 6]], labels=[1], box=[1, 2, 30, 20])
    b = image.predict(points=[[0.25, 0.25]], labels=[1], box=[1 / 36, 2 / 24, 30 / 36, 20 / 24], normalized=True)
    np.testing.assert_allclose(a.low_res, b.low_res, atol=1e-5)


def test_batches_equal_one_at_a_time(engine, picture):
    image = engine.image(picture)
    boxes = [[1, 2, 30, 20], [3, 3, 9, 9], [0, 0, 36, 24]]  # three prompts in batches of two
    batch = image.predict(box=boxes)
    assert batch.masks.shape == (3, 3, HEIGHT, WIDTH)
    for i, box in enumerate(boxes):
        np.testing.assert_allclose(batch.low_res[i], image.predict(box=box).low_res, atol=1e-5)
    points, labels = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]], [[1, 0], [1, 1]]
    batch = image.predict(points=points, labels=labels)
    for i in range(2):
        np.testing.assert_allclose(
            batch.low_res[i], image.predict(points=points[i], labels=labels[i]).low_res, atol=1e-5
        )


def test_mask_input_alone_and_with_points(engine, picture):
    image = engine.image(picture)
    logits = image.predict(points=[[5, 5]], labels=[1]).low_res[0]
    arithmetic = toy_sam2.Arithmetic(picture, "float")
    for shape in ((8, 8), (1, 8, 8)):
        alone = image.predict(mask_input=logits.reshape(shape), multimask=False)
        # no point token at all, not even padding: the toy would see a label of -1
        shift = 0.1 * (arithmetic.embedding.mean() + 0.1 + (logits.mean() + 1) / 2 + arithmetic.mean)
        np.testing.assert_allclose(alone.low_res[0], arithmetic.red + shift, atol=1e-5)
    assert image.predict(mask_input=logits[None, None]).masks.shape == (1, 3, HEIGHT, WIDTH)
    with_points = image.predict(points=[[5, 5]], labels=[1], mask_input=logits)
    assert np.abs(with_points.low_res - image.predict(points=[[5, 5]], labels=[1]).low_res).max() > 1e-3


@pytest.mark.parametrize(
    "prompt, error",
    [
        ({}, "no prompt"),
        ({"points": [[1, 1]]}, "together"),
        ({"points": [[40, 1]], "labels": [1]}, "outside"),
        ({"box": [5, 5, 1, 1]}, "left must be less"),
        ({"mask_input": np.zeros((4, 4))}, "mask_input must be"),
        ({"points": [[[1, 1]], [[2, 2]]], "labels": [[1]]}, "sets of labels"),
        ({"box": "a"}, "arrays of numbers"),
        ({"box": [[0, 0, 3, 3], [0, 0, 4, 4]], "points": [[1, 1]], "labels": [1]}, "do not go together"),
    ],
)
def test_bad_prompts(engine, picture, prompt, error):
    with pytest.raises(runtime.PromptError, match=error):
        engine.image(picture).predict(**prompt)


def test_a_picture_from_disk(engine, picture, tmp_path):
    from PIL import Image

    Image.fromarray(picture).save(tmp_path / "a.png")
    a, b = (engine.image(p).predict(points=[[5, 5]], labels=[1]).low_res for p in (picture, tmp_path / "a.png"))
    assert (a == b).all()
    with pytest.raises(runtime.VideoError):
        engine.image(np.zeros((4, 4), np.uint8))


def test_automatic_masks(engine):
    picture = np.zeros((200, 300, 3), np.uint8) + 60
    picture[60:140, 90:210] = 250
    found = engine.image(picture).segment_all(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    assert found and all(s.mask.shape == (200, 300) and s.area == s.mask.sum() for s in found)
    for s in found:
        rows, columns = np.flatnonzero(s.mask.any(1)), np.flatnonzero(s.mask.any(0))
        assert s.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert s.crop == (0, 0, 300, 200)
    cropped = engine.image(picture).segment_all(
        points_per_side=2, pred_iou_thresh=0.0, stability_score_thresh=0.0, crop_n_layers=1
    )
    assert all(0 <= s.crop[0] < s.crop[2] <= 300 for s in cropped)
    assert engine.image(picture).segment_all(points_per_side=2, pred_iou_thresh=2.0) == []
    with pytest.raises(runtime.UserError, match="no option points_per_sides; it has points_per_side"):
        engine.image(picture).segment_all(points_per_sides=2)


def test_grid_and_crops():
    np.testing.assert_allclose(grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    crops = crop_boxes((300, 400), 1, 512 / 1500)
    assert crops[0] == ((0, 0, 400, 300), 0) and len(crops) == 5
    # overlap int(0.3413 * 300 * 2 / 2) = 102: crops of (102 + 400) / 2 by (102 + 300) / 2
    assert [c[0] for c in crops[1:]] == [(0, 0, 251, 201), (0, 99, 251, 300), (149, 0, 400, 201), (149, 99, 400, 300)]


def flooded(mask):
    """Labels by flood fill, 8-connected."""
    labels = np.zeros(mask.shape, int)
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        label, stack = labels.max() + 1, [start]
        while stack:
            y, x = stack.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                labels[y, x] = label
                stack += [(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return labels


@pytest.mark.parametrize("seed", range(30))
def test_regions_equal_flood_fill(seed):
    draw = np.random.default_rng(seed)
    mask = draw.random(draw.integers(1, 24, 2)) < draw.choice([0.0, 0.2, 0.4, 0.6, 0.9, 1.0])
    labels, areas = components(mask)
    want = flooded(mask)
    assert (labels > 0).tolist() == mask.tolist()
    pairs = set(zip(labels[mask].tolist(), want[mask].tolist(), strict=True))
    assert len(pairs) == want.max() == len(areas) - 1
    assert np.bincount(labels.ravel(), minlength=len(areas)).tolist() == areas.tolist()


def test_holes_of_at_most_that_area_are_filled():
    logits = np.full((12, 12), 3.0, np.float32)
    logits[2:4, 2:4] = -1  # four pixels
    logits[8, 8] = logits[9, 9] = logits[10, 8] = 0  # three that touch at corners; zero is background
    filled = fill_holes(logits, 3)
    assert (filled[[8, 9, 10], [8, 9, 8]] == np.float32(0.1)).all() and (filled[2:4, 2:4] == -1).all()
    assert (fill_holes(logits, 4)[2:4, 2:4] == np.float32(0.1)).all()
    assert fill_holes(logits, 0) is logits and (logits[2:4, 2:4] == -1).all()
    assert (fill_holes(-np.ones((4, 4), np.float32), 99) == -1).all(), "a picture without object has no hole"


def test_small_regions():
    logits = np.full((12, 12), -5.0, np.float32)
    logits[1:8, 1:8], logits[10, 10], logits[4, 4] = 2, 1, -1
    clean = without_small_regions(logits, 3)
    assert clean[10, 10] == -10 and clean[4, 4] == 10 and clean[2, 2] == 2 and clean[0, 0] == -5
    assert without_small_regions(logits, 0) is logits


def test_suppression():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert suppress(boxes, np.array([0.5, 0.9, 0.1, 0.3, 0.2]), 0.7).tolist() == [1, 3, 4, 2]
    assert suppress(boxes, np.array([0.5, 0.9, 0.1, 0.3, 0.2]), 0.9).tolist() == [1, 0, 3, 4, 2]
    assert suppress(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


def test_mask_prompts_at_the_networks_size():
    mask = np.zeros((10, 20), bool)
    mask[:, 10:] = True
    assert (square_mask(mask, 40) == (np.arange(40) >= 20)).all()
    whole = np.eye(8, dtype=bool)
    assert square_mask(whole, 8) is whole
