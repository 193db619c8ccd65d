"""Tests of `benchmarks.accuracy`: J, F and intervals against independent computations, layouts, the command."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from benchmarks import accuracy, datasets
from export.nano import scores
from export.nano.scores import Record
from runtime.results import Result


def outline(mask):
    """Inner contour with the half-pixel shift of DAVIS' seg2bmap, by scipy instead of by slices."""
    shifted = [ndimage.shift(mask.astype(np.uint8), s, order=0, mode="nearest") for s in ((-1, 0), (0, -1))]
    corner = np.zeros_like(mask)
    corner[:-1, :-1] = mask[1:, 1:]
    corner[-1], corner[:, -1] = mask[-1], mask[:, -1]
    return (shifted[0] != mask) | (shifted[1] != mask) | (corner != mask)


def independent(pred, gt):
    radius = np.ceil(0.008 * np.linalg.norm(pred.shape))
    union = np.logical_or(pred, gt).sum()
    j = np.logical_and(pred, gt).sum() / union if union else 1.0
    a, b = outline(pred), outline(gt)
    if not a.any() or not b.any():
        return j, float(a.any() == b.any())
    precision = (ndimage.distance_transform_edt(~b)[a] <= radius).mean()
    recall = (ndimage.distance_transform_edt(~a)[b] <= radius).mean()
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def shape(rng, side=96):
    field = ndimage.gaussian_filter(rng.standard_normal((side, side)), 9)
    mask = field > np.quantile(field, 0.85)
    mask[-2:], mask[:, -2:] = False, False  # the last row and column are a matter of convention
    return mask


@pytest.mark.parametrize("seed", range(5))
def test_j_and_f_equal_an_independent_computation(seed):
    rng = np.random.default_rng(seed)
    truth = np.stack([shape(rng) for _ in range(4)])
    pred = np.stack([ndimage.shift(t.astype(np.uint8), (seed, -1), order=0) > 0 for t in truth])
    pred[3] = False
    if seed == 4:
        truth[3] = False
    pairs = np.array([independent(p, t) for p, t in zip(pred, truth, strict=True)])
    j, f = scores.score(pred, truth)
    assert j == pytest.approx(pairs[:, 0].mean(), abs=1e-9)
    assert f == pytest.approx(pairs[:, 1].mean(), abs=1e-9)


def test_interval_holds_the_mean_and_narrows():
    rng = np.random.default_rng(0)
    values = rng.normal(0.8, 0.1, 400)
    low, high = scores.bootstrap_interval(values, [str(i) for i in range(400)])
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.25)
    # sentences that share a clip tell less than as many clips
    few = scores.bootstrap_interval(np.repeat(values[:40], 10), [str(i // 10) for i in range(400)])
    assert few[1] - few[0] > 2 * (high - low)


def test_table_splits_by_kind_and_by_unseen_pairs():
    records = [
        Record("a", "x", "motion", True, 0.5, 0.7),
        Record("a", "y", "noun", False, 1.0, 1.0),
        Record("b", "z", "motion", False, 0.9, 0.9),
    ]
    rows = scores.table(records)
    assert rows["all"]["J&F"] == pytest.approx((0.6 + 1.0 + 0.9) / 3, abs=1e-4)
    assert rows["motion"]["n"] == 2 and rows["unseen pairs"]["J&F"] == pytest.approx(0.6)
    assert rows["seen pairs of those kinds"]["n"] == 1
    assert "motion" in scores.format_table(rows)


def folder(root, layout):
    """A clip of 4 frames with one object that moves right, in a public layout."""
    frames = root / "JPEGImages" / "video"
    frames.mkdir(parents=True)
    masks = np.zeros((4, 40, 60), np.uint8)
    for t in range(4):
        masks[t, 10:30, 5 + 5 * t : 25 + 5 * t] = 2
        Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(frames / f"{t:05d}.jpg")
    said = {"exp": "the box"}
    if layout == "mevis":
        from pycocotools import mask as coco

        codes = [coco.encode(np.asfortranarray(m // 2)) for m in masks]
        codes = [{"size": c["size"], "counts": c["counts"].decode()} for c in codes]
        (root / "mask_dict.json").write_text(json.dumps({"7": codes}))
        said |= {"anno_id": [7], "obj_id": [2]}
    else:
        annotations = root / "Annotations" / "video"
        annotations.mkdir(parents=True)
        for t in range(0, 4, 1 if layout == "davis" else 2):
            picture = Image.fromarray(masks[t])
            picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            picture.save(annotations / f"{t:05d}.png")
        said |= {"obj_id": "2"}
    meta = {"videos": {"video": {"frames": [f"{t:05d}" for t in range(4)], "expressions": {"0": said}}}}
    (root / "meta_expressions.json").write_text(json.dumps(meta))
    return masks == 2


@pytest.mark.parametrize("layout", ["davis", "ytvos", "mevis"])
def test_layouts(tmp_path, layout):
    truth = folder(tmp_path, layout)
    (case,) = datasets.LAYOUTS[layout](tmp_path)
    assert case.texts == ["the box"] and len(list(case.frames())) == 4
    counted = sorted(case.annotated or range(4))
    assert (case.masks[0][counted] == truth[counted]).all()
    assert counted == ([0, 2] if layout == "ytvos" else [0, 1, 2, 3])
    assert case.promptable().texts == ["the box"]


def test_missing_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="meta_expressions.json: missing"):
        list(datasets.expressions(tmp_path))


def test_click_lies_in_the_thickest_part():
    mask = np.zeros((50, 50), bool)
    mask[10:30, 10:30] = True
    mask[19:21, 30:48] = True
    ((x, y),) = accuracy.prompt_of(mask, "click").points
    assert 15 <= x <= 24 and 15 <= y <= 24
    assert accuracy.prompt_of(mask, "box").xyxy == (10, 10, 48, 30)


class Oracle:
    """An engine that knows the truth and is wrong on one frame; sentences with 'nothing' get no mask."""

    def __init__(self, truth):
        self.truth = truth

    def session(self, prompts, conditional_memory=None):
        self.prompts = prompts
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def stream(self, frames):
        for t, _ in enumerate(frames):
            masks = np.stack([self.truth[t] & (t > 0) & ("nothing" not in p.text) for p in self.prompts])
            ids = tuple(range(1, len(masks) + 1))
            yield Result(t, ids, ids, masks, None, None)


def test_measure(tmp_path):
    truth = folder(tmp_path, "davis")
    (case,) = datasets.expressions(tmp_path)
    other = datasets.replace(case, name="other", texts=["nothing"])
    engine, quiet = Oracle(truth), lambda _: None
    (record,) = accuracy.measure(engine, [case], accuracy.VARIANTS["text"], quiet)
    assert (record.j, record.f) == (0.75, 0.75)
    shuffled = accuracy.measure(engine, [case, other], accuracy.VARIANTS["shuffled sentences"], quiet)
    assert [r.j for r in shuffled] == [0.0, 0.75]
    with pytest.raises(TypeError, match="memory"):
        accuracy.measure(engine, [case], accuracy.VARIANTS["memory off"], quiet)


def test_command_reports_errors(tmp_path, toy, capsys):
    folder(tmp_path, "davis")
    assert accuracy.main(["--engine", str(toy), "--data", str(tmp_path)]) == 2
    assert "has no tokenizer" in capsys.readouterr().err
    assert accuracy.main(["--engine", str(toy), "--data", str(tmp_path / "nowhere")]) == 2
    assert "meta_expressions.json: missing" in capsys.readouterr().err


def test_paired_differences():
    def records(*values, clip="a"):
        return [Record(clip, str(i), "noun", False, v, v) for i, v in enumerate(values)]

    change = scores.paired_difference(records(0.5, 0.5), records(0.25, 0.5))
    assert change == {"n": 2, "difference": -0.125, "interval": [-0.125, -0.125]}
    assert scores.paired_difference(records(0.5), records(0.5, 0.6)) is None
    assert scores.paired_difference(records(0.5), records(0.5, clip="b")) is None


def test_clips_of_chosen_kinds(monkeypatch):
    from export.nano import sprites
    from helpers.placeholder_sprites import placeholder_sprites

    monkeypatch.setattr(sprites, "load", placeholder_sprites)
    cases = list(datasets.nano(3, split="val", kinds=("later",)))
    assert {len(m) for case in cases for m in case.masks} == {16}
    assert {kind for case in cases for kind in case.kinds} <= {"later", "noun"}
