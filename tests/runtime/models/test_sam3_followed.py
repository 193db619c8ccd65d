"""Memory of the objects of a concept, against what the official code remembers and attends to; no network."""

import pytest

from helpers import sam3_recording


@pytest.fixture(params=sam3_recording.CASES)
def recording(request):
    return sam3_recording.recording(request.param)


def test_memory_that_is_attended_to(recording):
    passes = [p for p in recording.meta["passes"] if not p.get("prompt_pass")]
    compared = 0
    for found, expected in zip(recording.attended, passes, strict=True):
        for table in expected["memory_tables"]:
            want = {name: sorted(table[name]) for name in ("spatial", "pointers")}
            for obj in table["ids"]:
                assert found[obj] == want, (expected["frame"], obj)
                compared += 1
    assert compared > 40


def test_memory_that_is_written(recording):
    """Objects that are removed on a frame need not remember it."""
    passes = [p for p in recording.meta["passes"] if not p.get("prompt_pass")]
    for found, expected in zip(recording.remembered, passes, strict=True):
        assert found == [present for obj, _, present in expected["memory"] if obj not in expected["removed"]]


def test_memory_is_given_back(recording):
    objects = recording.concept.object_ids
    if objects:  # another test may have closed it
        assert recording.pool.in_use == len(objects)
        recording.concept.close()
    assert recording.pool.in_use == 0
