"""The measurement of concepts, with an engine that knows the truth."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import concepts
from export.nano import sprites
from helpers.placeholder_sprites import placeholder_sprites


@pytest.fixture(scope="module")
def chosen():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sprites, "load", placeholder_sprites)
        patch.setattr(concepts, "FRAMES", 4)
        return list(concepts.cases(3))


class Oracle:
    """Finds all objects of the cases. `wrong`: it also finds absent concepts; `ids`: new ones on every frame."""

    def __init__(self, cases, wrong=False):
        self.wrong, self.frames = wrong, {}
        for case in cases:
            for frame, found in zip(case.clip.frames, case.truth(), strict=True):
                self.frames[frame.tobytes()] = case, *found

    def found(self, frame, text):
        case, ids, masks = self.frames[frame.tobytes()]
        return (ids, masks) if text == case.there.text or self.wrong else ([], masks[:0])

    def image(self, frame):
        def detect(prompts, logits):
            _, masks = self.found(frame, prompts[0].text)
            shown = {"masks": masks, "scores": np.ones(len(masks), np.float32)}
            return [SimpleNamespace(low_res_logits=np.where(masks, 5, -5), **shown)]

        return SimpleNamespace(detect=detect)

    @contextmanager
    def session(self, prompts, **options):
        def stream(frames):
            for frame in frames:
                ids, masks = self.found(frame, prompts[0].text)
                yield SimpleNamespace(object_ids=tuple(ids), masks=masks)

        yield SimpleNamespace(stream=stream)


def test_perfect_objects_have_perfect_scores(chosen):
    engine = Oracle(chosen)
    row = concepts.measure(engine, chosen, {})
    assert [row[name]["value"] for name in ("HOTA", "DetA", "AssA")] == pytest.approx([1, 1, 1])
    assert row["false_objects"] == 0 and sum(kind["n"] for kind in row["kinds"].values()) == len(chosen)
    scores = concepts.image_scores(engine, chosen)
    assert scores["pmF1"] == pytest.approx(1) and scores["cgF1"] == pytest.approx(100)


def test_detection_without_association_loses_association_alone(chosen):
    row = concepts.measure(Oracle(chosen), chosen, None)
    assert row["DetA"]["value"] == pytest.approx(1, abs=1e-3) and row["AssA"]["value"] < 0.6


def test_objects_of_absent_concepts_are_counted(chosen):
    engine = Oracle(chosen, wrong=True)
    assert concepts.measure(engine, chosen, {})["false_objects"] >= 0.5
    assert concepts.image_scores(engine, chosen)["cgF1"] <= 50


def test_correlation_against_numpy_and_without_variation():
    truth, found = np.array([1, 1, 0, 0, 1, 0], bool), np.array([1, 0, 0, 1, 1, 0], bool)
    assert concepts.matthews(truth, found) == pytest.approx(np.corrcoef(truth, found)[0, 1])
    assert concepts.matthews(truth, np.ones(6, bool)) == 0
