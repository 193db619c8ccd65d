"""Sessions of SAM 3 as their callers use and misuse them, on numpy stages whose objects are drawn by the tests."""

import numpy as np
import pytest

from helpers import numpy_sam3
from helpers.numpy_sam3 import picture

SIZE = 24, 40


@pytest.fixture(scope="module")
def engine(numpy_sam3_bundle):
    return numpy_sam3.load(numpy_sam3_bundle)


# -- prompts in a video whose frames are known


def mask(top, left):
    given = np.zeros(SIZE, bool)
    given[top : top + 7, left : left + 9] = True
    return given


def test_masks_that_are_given_are_shown_with_their_boxes(engine):
    """Also where a later mask, points or nothing takes their place."""
    with engine.video([picture(0, 3)] * 3, logits=True) as video:
        for obj, given in enumerate((mask(2, 3), mask(5, 8), mask(1, 1))):
            result = video.add_mask(0, obj, given)
            assert np.array_equal(result.masks[obj], given)
            for row, box in zip(result.masks, result.boxes, strict=True):
                rows, columns = np.nonzero(row)
                assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert result.masks.sum(0).max() == 1
        video.add_points(0, 1, [(30, 20)], [1])
        assert not np.array_equal(video.clear_prompts(0, 2).masks[1], mask(5, 8))
        assert [r.frame_index for r in video.propagate()] == [0, 1, 2]
        assert video.output(0, 0).given is None


def test_corrections_of_an_offline_video_condition_whatever_the_option_says(engine):
    with engine.video([picture(0, 3)] * 3, add_all_frames_to_correct_as_cond=False) as video:
        video.add_mask(0, 1, mask(2, 3))
        list(video.propagate())
        video.add_points(2, 1, [(30, 20)], [1])
        assert len(list(video.propagate())) == 3 and set(video.state(1).cond_outputs) == {0, 2}
