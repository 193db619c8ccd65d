"""Concepts on images: the toy SAM 3, exported and run, and what its prompts take."""

import numpy as np
import pytest

import runtime

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from export import bundle
from export.networks import base
from export.verify import parity, parity_clip, references
from helpers.toy_sam3 import toy_sam3
from runtime.prompts import Concept
from runtime.prompts.synthetic import synthetic_tokens

WORDS = [5, 6, 7]
BOXES = [[10, 10, 60, 70], [80, 20, 150, 80]]
IMAGE = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return toy_sam3(tracker=False)


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory, shared_traces):
    source = base.describe("sam3", model)
    folder = bundle.export_bundle(source, tmp_path_factory.mktemp("sam3"), "toy", variants=(), check=False)
    return runtime.load(folder, backend="ort")


@pytest.fixture
def image(engine):
    return engine.image(IMAGE)


def detect(image, *concepts, threshold=0.2):
    return image.detect(list(concepts), threshold=threshold, logits=True)


def equal(a, b):
    names = ("masks", "scores", "boxes", "score_logits", "low_res_logits")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names) and a.presence == b.presence


@pytest.mark.slow
def test_detections_follow_torch(model, engine):
    manifest = engine.bundle.manifest
    frames, tokens = parity_clip.clip_frames(parity_clip.clip_length(manifest)), synthetic_tokens(60, 8)
    want = references.sam3_clip(model, manifest.networks, frames, tokens)
    got = parity_clip.clip_results(engine)
    for row in parity.compare_clip(want, got, "fp32"):
        assert row.passed and row.error < 1e-4, row


@pytest.mark.slow
def test_one_result_per_concept(image):
    first, second = detect(image, Concept(tokens=WORDS), Concept(tokens=[9]))
    count = len(first.object_ids)
    assert count and first.masks.shape == (count, 90, 160) and first.low_res_logits.shape == (count, 32, 32)
    assert first.object_ids == tuple(range(1, count + 1)) and set(first.prompt_ids) == {1} == {second.prompt_ids[0] - 1}
    assert (first.scores > 0.2).all() and first.boxes.shape == (count, 4)
    joint = first.presence / (1 + np.exp(-first.score_logits))
    assert first.scores == pytest.approx(joint, abs=1e-6)


@pytest.mark.slow
def test_concepts_do_not_change_each_other(image):
    concepts = [Concept(tokens=WORDS), Concept(tokens=[9], boxes=BOXES, labels=[1, 0]), runtime.Text(tokens=[3, 4])]
    together = image.detect(concepts, threshold=0.2, logits=True)
    for i, concept in enumerate(concepts):
        alone = image.detect([concept], threshold=0.2, logits=True)[0]
        assert alone.scores == pytest.approx(together[i].scores, abs=1e-6)
        assert alone.low_res_logits == pytest.approx(together[i].low_res_logits, abs=1e-5)


@pytest.mark.slow
def test_exemplars_and_their_labels_matter(image):
    plain, positive, negative, both, reversed_order = (
        detect(image, Concept(tokens=WORDS, **exemplars), threshold=0)[0]
        for exemplars in (
            {},
            {"boxes": BOXES[:1]},
            {"boxes": BOXES[:1], "labels": [0]},
            {"boxes": BOXES, "labels": [1, 0]},
            {"boxes": BOXES[::-1], "labels": [0, 1]},
        )
    )
    for a, b in ((plain, positive), (positive, negative), (positive, both)):
        assert abs(a.score_logits - b.score_logits).max() > 1e-3
    assert both.score_logits == pytest.approx(reversed_order.score_logits, abs=1e-5)
    unit = np.array(BOXES[:1]) / [160, 90, 160, 90]
    assert equal(positive, detect(image, Concept(tokens=WORDS, boxes=unit, normalized=True), threshold=0)[0])


@pytest.mark.slow
def test_image_and_words_are_encoded_once_and_masks_when_needed(engine):
    def calls(name):
        return engine.timings[name][0]

    image = engine.image(IMAGE[:80])
    before = {name: calls(name) for name in engine.timings}
    (nothing,) = detect(image, Concept(tokens=[11, 12]), threshold=0.999)
    assert nothing.masks.shape == (0, 80, 160) and nothing.boxes.shape == (0, 4)
    assert calls("mask_head") == before["mask_head"] and calls("fine_levels") == before["fine_levels"]
    for _ in range(2):
        detect(image, Concept(tokens=[11, 12]))
    assert calls("image_encoder") == before["image_encoder"] + 1
    assert calls("text_encoder") == before["text_encoder"] + 1
    assert calls("fine_levels") == before["fine_levels"] + 1


@pytest.mark.slow
def test_semantic_mask_on_request(image):
    (found,) = image.detect([Concept(tokens=WORDS)], threshold=0.999, semantic=True)
    assert found.semantic_mask.shape == (90, 160) and found.semantic_mask.dtype == bool and not len(found.masks)
    assert detect(image, Concept(tokens=WORDS))[0].semantic_mask is None


@pytest.mark.slow
def test_more_concepts_than_a_batch(image):
    many = image.detect([Concept(tokens=[i + 1]) for i in range(19)], threshold=0.2)
    assert [result.prompt_ids[0] for result in many] == list(range(1, 20))


@pytest.mark.slow
def test_long_concepts_are_cut_with_a_warning(image):
    with pytest.warns(UserWarning, match="cut to 8 tokens"):
        (cut,) = detect(image, Concept(tokens=[58, *range(1, 12), 59]))
    assert equal(cut, detect(image, Concept(tokens=[58, *range(1, 7), 59]))[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda image: image.detect(Concept(tokens=[1])), "must be a list"),
        (lambda image: image.detect([]), "must be a list"),
        (lambda image: image.detect(["bus"]), "must be runtime.Concept or runtime.Text, not str"),
        (lambda image: image.detect([Concept(tokens=[99])]), "outside the vocabulary 0..59"),
        (lambda image: image.detect([Concept("bus")]), "has no tokenizer"),
        (lambda image: image.detect([Concept(boxes=BOXES)]), "has no tokenizer"),
        (lambda image: image.detect([Concept(tokens=[1], boxes=[[0, 0, 500, 50]])]), r"\(500, 50\) lies outside"),
        (lambda image: image.detect([Concept(tokens=[1], boxes=[BOXES[0]] * 17)]), "17 exemplars .* more than the 16"),
        (lambda image: image.detect([Concept(tokens=[1])], threshold=1.5), "threshold must be in 0..1"),
        (lambda image: image.predict(points=[[1, 1]], labels=[1]), "cannot segment an image by points"),
        (lambda image: image.refer([runtime.Text(tokens=[1])]), "cannot"),
    ],
)
def test_refusals(image, call, message):
    with pytest.raises(runtime.UserError, match=message):
        call(image)
