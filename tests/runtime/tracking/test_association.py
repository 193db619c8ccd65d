"""Association of SAM 3 against decisions and masks that the official code made, and rules that those leave open."""

import itertools

import numpy as np
import pytest

from helpers import sam3_recording
from helpers import sam3_scenes as scenes
from helpers.sam3_recording import GOLDENS
from runtime.tracking.association import Association
from runtime.tracking.matching import match_detections, non_maximum_suppression

SIDE = scenes.GRID


@pytest.fixture(params=sam3_recording.CASES)
def recording(request):
    return sam3_recording.recording(request.param)


def test_decisions_equal_the_official_ones(recording):
    for (alive, decision), expected in zip(recording.decisions, recording.meta["passes"], strict=True):
        assert list(alive) == expected["alive"]
        assert [list(birth) for birth in decision.births] == expected["births"]
        assert sorted(decision.removed) == sorted(expected["removed"])
        assert [obj for obj, _ in decision.recondition] == [obj for obj, _ in expected["recondition"]]
        assert decision.present.tolist() == [present for _, _, present in expected["memory"]]


def test_matches_equal_the_official_ones(recording):
    """Detections that are kept, and how they relate to tracks, recomputed from the cleaned masks of each decision."""
    options = recording.association.options
    for (alive, decision), expected in zip(recording.decisions, recording.meta["passes"], strict=True):
        masks, scores, _ = scenes.detections(recording.scene, expected["frame"])
        assert non_maximum_suppression(masks, scores, options) == expected["kept"]
        if expected.get("occlusion_suppressed"):
            continue  # the decision's masks lack what is hidden
        found = match_detections(masks, scores, alive, decision.masks, options)
        assert found.candidates == expected["candidates"]
        assert found.unmatched == expected["unmatched"] and found.empty == expected["empty"]
        assert {str(query): ids for query, ids in found.matched.items()} == {
            query: ids for query, ids in expected["matched"].items() if ids
        }
        assert {str(obj): query for obj, query in found.confident.items()} == expected["confident"]


def test_shown_frames_equal_the_official_ones(recording):
    height, width = recording.scene["height"], recording.scene["width"]
    packed = iter(np.load(GOLDENS / f"orchestration_{recording.meta['case'].split('_')[-1]}.npz")["shown_masks"])
    for (number, shown), expected in zip(recording.shown, recording.meta["shown"], strict=True):
        assert (number, shown.frame_index) == (expected["after_pass"], expected["frame"])
        assert list(shown.object_ids) == expected["ids"]
        assert shown.scores.tolist() == pytest.approx(expected["scores"], abs=1e-6)
        for mask, row in zip(shown.masks, packed, strict=False):
            assert np.array_equal(np.packbits(mask), row), shown.frame_index
        boxes = np.array(expected["boxes_xywh"]).reshape(-1, 4) * [width, height, width, height]
        boxes[:, 2:] += boxes[:, :2]
        assert shown.boxes == pytest.approx(boxes, abs=1e-2)


def test_the_hidden_object_is_suppressed_everywhere():
    recording = sam3_recording.recording("occlusion")
    hidden = 0
    for (alive, decision), expected in zip(recording.decisions, recording.meta["passes"], strict=True):
        for obj in expected.get("occlusion_suppressed", []):
            hidden += 1
            assert (decision.masks[list(alive).index(obj)] == -10).all()
    assert hidden


# -- rules that the recordings leave open ---------------------------------------------------------------------------


def disc(x, y, radius=20):
    yy, xx = np.mgrid[:SIDE, :SIDE]
    return np.where((xx - x) ** 2 + (yy - y) ** 2 < radius**2, 5.0, -5.0).astype(np.float32)


def detections(*discs, score=0.9):
    return np.stack([disc(*d) for d in discs]), np.full(len(discs), score, np.float32)


NO_TRACKS = np.zeros((0, SIDE, SIDE), np.float32), np.zeros(0, np.float32)


def tracked(association, positions):
    """Tracks of the living objects, which stay where they were born."""
    ids = association.object_ids
    logits = np.array([disc(*positions[obj]) for obj in ids], np.float32).reshape(-1, SIDE, SIDE)
    return logits, np.full(len(ids), 5.0, np.float32)


def test_concepts_share_one_source_of_ids():
    ids = itertools.count(10)
    first, second = Association(96, 96, ids=ids), Association(96, 96, ids=ids)
    first.step(0, detections((60, 60)), NO_TRACKS)
    second.step(0, detections((60, 60), (200, 200)), NO_TRACKS)
    assert first.object_ids == (10,) and second.object_ids == (11, 12)


def test_removed_objects_leave_the_frames_that_wait():
    association = Association(96, 96)
    association.step(0, detections((60, 60), (200, 200)), NO_TRACKS)
    association.remove([0])
    assert association.object_ids == (1,)
    assert [shown.object_ids for shown in association.flush()] == [(1,)]


def test_frames_are_held_back_and_flushed_in_order():
    positions = {0: (60, 60)}
    association = Association(96, 96)
    association.step(0, detections((60, 60)), NO_TRACKS)
    shown = []
    for frame in range(1, 20):
        shown += association.step(frame, detections((60, 60)), tracked(association, positions)).show
    assert [s.frame_index for s in shown] == [0, 1, 2, 3, 4, 5]
    assert [s.frame_index for s in association.flush()] == list(range(6, 20))
    assert association.flush() == []


def test_unmatched_object_is_hidden_after_its_keep_alive():
    association = Association(96, 96, temporal_disambiguation=False, hide_unmatched_after_hotstart=True)
    positions = {0: (60, 60)}
    association.step(0, detections((60, 60)), NO_TRACKS)
    nothing = detections((60, 60), score=0.1)
    visible = []
    for frame in range(1, 40):
        (shown,) = association.step(frame, nothing, tracked(association, positions)).show
        visible.append(bool(shown.object_ids))
    assert visible == [True] * 29 + [False] * 10
    (shown,) = association.step(40, detections((60, 60)), tracked(association, positions)).show
    (shown,) = association.step(41, detections((60, 60)), tracked(association, positions)).show
    assert shown.object_ids == (0,)


def test_associations_share_no_buffer():
    """Engines of one process run in threads of their own: each has its upsampler."""
    first, second = Association(96, 96), Association(96, 96)
    assert first._enlarger(32, 64, 4) is first._enlarger(32, 64, 4)
    assert first._enlarger(32, 64, 4) is not second._enlarger(32, 64, 4)


def test_frame_without_detections_or_tracks():
    association = Association(40, 60, temporal_disambiguation=False)
    decision = association.step(0, detections((60, 60), score=0.2), NO_TRACKS)
    assert decision.births == [] and decision.masks.shape == (0, SIDE, SIDE)
    (shown,) = decision.show
    assert shown.masks.shape == (0, 40, 60) and shown.boxes.shape == (0, 4)
