"""Scores of a demonstration."""

from pathlib import Path

import numpy as np
import pytest

from runtime import Result, Text
from runtime.bundle.demo import Demo, Quality


def squares(*corners):
    masks = np.zeros((len(corners), 32, 32), bool)
    for mask, (y, x) in zip(masks, corners, strict=True):
        mask[y : y + 8, x : x + 8] = True
    return masks


def quality(result):
    truth = squares((0, 0), (16, 16))
    indexed = np.zeros((1, 32, 32), np.uint8)
    indexed[0][truth.any(axis=0)] = 7
    indexed[0][20:24, :4] = 9
    scores = Quality(Demo(Path("clip.mp4"), [Text("two squares"), Text("a small one")], [7, 9], indexed))
    scores.add(result)
    return scores.table()


@pytest.mark.parametrize("order", [(1, 1, 2), (2, 1, 1)])
def test_objects_of_one_sentence_count_together(order):
    small = np.zeros((32, 32), bool)
    small[20:24, :4] = True
    parts = iter(squares((0, 0), (16, 16)))
    masks = np.stack([next(parts) if prompt == 1 else small for prompt in order])
    table = quality(Result(0, (4, 5, 6), order, masks, np.ones(3), np.zeros((3, 4))))
    assert [row["J&F"] for row in table] == [1, 1]


def test_a_sentence_without_objects_counts_as_an_empty_mask():
    table = quality(Result(0, (3,), (1,), squares((0, 0)), np.ones(1), np.zeros((1, 4))))
    assert table[0]["J"] == 0.5 and table[1]["J"] == 0
    none = np.zeros((0, 32, 32), bool)
    assert [row["J"] for row in quality(Result(0, (), (), none, np.ones(0), np.zeros((0, 4))))] == [0, 0]
