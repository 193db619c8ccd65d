"""HOTA against small cases computed by hand."""

import numpy as np
import pytest

from benchmarks.hota import THRESHOLDS, Counts, count


def frame(**boxes):
    """Ids and masks of boxes (x0, x1) on a strip of one row."""
    masks = np.zeros((len(boxes), 1, 40), bool)
    for mask, (x0, x1) in zip(masks, boxes.values(), strict=True):
        mask[0, x0:x1] = True
    return list(boxes), masks


A, B = (0, 10), (20, 30)


@pytest.mark.parametrize(
    ("truth", "tracked", "detection", "association"),
    [
        ([frame(a=A)] * 4, [frame(x=A)] * 4, 1, 1),
        # the id changes in the middle: each matched pair shares 2 of its 4 frames
        ([frame(a=A)] * 4, [frame(x=A)] * 2 + [frame(y=A)] * 2, 1, 1 / 2),
        ([frame(a=A)] * 4, [frame(x=A), frame(y=A), frame(z=A), frame(w=A)], 1, 1 / 4),
        # found on half of the frames
        ([frame(a=A)] * 4, [frame(x=A)] * 2 + [frame()] * 2, 1 / 2, 1 / 2),
        # a second object that is not there
        ([frame(a=A)] * 4, [frame(x=A, y=B)] * 4, 1 / 2, 1),
        # two objects swap their ids once: each pair shares 3 or 1 of the frames, of 4 + 4 - 3 or 4 + 4 - 1
        ([frame(a=A, b=B)] * 4, [frame(x=A, y=B)] * 3 + [frame(x=B, y=A)], 1, (6 * 3 / 5 + 2 * 1 / 7) / 8),
        ([frame(a=A)] * 4, [frame()] * 4, 0, 0),
        ([frame()] * 4, [frame(x=A)] * 4, 0, 0),
        ([frame()] * 4, [frame()] * 4, 0, 0),
    ],
)
def test_cases_computed_by_hand(truth, tracked, detection, association):
    scores = count(truth, tracked).scores
    assert scores["DetA"] == pytest.approx(detection) and scores["AssA"] == pytest.approx(association)
    assert scores["HOTA"] == pytest.approx(np.sqrt(detection * association))


def test_an_inexact_mask_counts_up_to_its_overlap():
    """IoU 6 / 10: matched at 0.05 .. 0.60, twelve of nineteen thresholds."""
    assert len(THRESHOLDS) == 19
    scores = count([frame(a=A)] * 3, [frame(x=(0, 6))] * 3).scores
    assert scores == pytest.approx(dict.fromkeys(scores, 12 / 19))


def test_clips_are_added_and_association_is_weighted_by_matches():
    whole = count([frame(a=A)] * 4, [frame(x=A)] * 4)
    halves = count([frame(a=A)] * 2, [frame(x=A), frame(y=A)])
    scores = Counts.total([whole, halves]).scores
    assert scores["DetA"] == pytest.approx(1) and scores["AssA"] == pytest.approx((4 * 1 + 2 * 0.5) / 6)
