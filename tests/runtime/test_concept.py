"""Concepts check themselves when they are made."""

import numpy as np
import pytest

from runtime import Concept, PromptError, Text


def test_forms_of_boxes_and_labels():
    concept = Concept("yellow bus", boxes=[1, 2, 30, 40])
    assert concept.boxes == ((1, 2, 30, 40),) and concept.labels == (1,)
    concept = Concept(boxes=np.array([[1, 2, 30, 40], [5, 5, 9, 9]]), labels=[True, 0.0])
    assert concept.labels == (1, 0) and concept.label == "exemplar" and concept.words is None


def test_boxes_as_centre_and_size():
    concept = Concept("bus", boxes=[[10, 20, 30, 60]])
    assert concept.scaled_boxes(100, 200) == pytest.approx(np.array([[0.1, 0.4, 0.1, 0.4]]))
    unit = Concept("bus", boxes=[[0.05, 0.2, 0.15, 0.6]], normalized=True)
    assert unit.scaled_boxes(100, 200) == pytest.approx(concept.scaled_boxes(100, 200))
    assert Concept("bus").scaled_boxes(100, 200).shape == (0, 4)


def test_a_sentence_is_a_concept():
    assert Concept.of(Text("a bus")) == Concept("a bus")
    assert Concept.of(Text(tokens=[1, 2])).tokens == (1, 2)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Concept(), "needs words, or a box around an instance"),
        (lambda: Concept(boxes=[[0, 0, 5, 5]], labels=[0]), "needs words, or a box around an instance"),
        (lambda: Concept("bus", tokens=[1]), "exactly one"),
        (lambda: Concept("  "), "blank"),
        (lambda: Concept("bus", boxes=[[5, 5, 1, 1]]), "left must be less than right"),
        (lambda: Concept("bus", boxes=[[0, 0, 1]]), "4 numbers"),
        (lambda: Concept("bus", boxes=[[0, 0, 5, 5]], labels=[1, 1]), "one 1 or 0 for each of the 1 boxes"),
        (lambda: Concept("bus", boxes=[[0, 0, 5, 5]], labels=[2]), "one 1 or 0"),
        (lambda: Concept.of("bus"), "not str"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(PromptError, match=message):
        make()
