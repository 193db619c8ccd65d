"""The pool: a ring that is never moved, read as a prefix."""

import numpy as np
import pytest

from runtime.device.base import Cpu
from runtime.errors import UserError
from runtime.tracking.memory import MemoryPool


def make(objects=3, slots=3, pointers=4):
    return MemoryPool(Cpu(), objects, slots, 2, 2, pointers, 2)


def test_ring_keeps_the_newest_frames_with_their_ages():
    pool = make()
    row = pool.rent()
    for frame in range(8):
        assert row.filled == min(frame, 3) and row.filled_pointers == min(frame, 4)
        seen = {int(pool.features[row.index, s, 0, 0]): int(a) for s, a in enumerate(row.ages(frame))}
        assert seen == {g: frame - g - 1 for g in range(max(0, frame - 3), frame)}
        assert set(pool.pointers[row.index, : row.filled_pointers, 0]) == set(range(max(0, frame - 4), frame))
        pool.slot(row, frame)[:] = frame
        pool.pointer(row, frame)[:] = frame


def test_slots_are_views_of_one_allocation():
    pool = make()
    row = pool.rent()
    base = pool.features
    for frame in range(7):
        assert np.shares_memory(pool.slot(row, frame), base)
    assert pool.features is base


def test_rows_are_unique_cleared_and_limited():
    pool = make(objects=2)
    a, b = pool.rent(), pool.rent()
    assert a.index != b.index
    with pytest.raises(UserError, match="max_objects"):
        pool.rent()
    pool.slot(a, 0)
    pool.release(a)
    again = pool.rent()
    assert again.index == a.index and again.filled == 0
    pool.release(b)
    with pytest.raises(ValueError):
        pool.release(b)
