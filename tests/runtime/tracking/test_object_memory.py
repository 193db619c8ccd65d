"""Object memory: rings, and blocks that are allocated and freed."""

import numpy as np
import pytest

from runtime.device.base import Cpu
from runtime.errors import UserError
from runtime.tracking.object_memory import BlockPool


def pool(objects=3, blocks=3, contiguous=True):
    return BlockPool(Cpu(), objects, blocks, (2, 2), "float32", contiguous)


def test_ring_keeps_the_newest_frames():
    rings = pool(blocks=3)
    memory = rings.open()
    for frame in range(8):
        assert memory.filled == min(frame, 3)
        assert set(rings.array[memory.index, : memory.filled, 0, 0]) == set(range(max(0, frame - 3), frame))
        memory.ring_block(frame)[:] = frame


def test_ring_blocks_are_views_of_one_allocation():
    rings = pool()
    memory, array = rings.open(), rings.array
    assert all(np.shares_memory(memory.ring_block(frame), array[memory.index]) for frame in range(7))
    assert rings.array is array


def test_objects_that_start_together_are_neighbours():
    rings = pool()
    memories = [rings.open() for _ in range(3)]
    assert [memory.index for memory in memories] == [0, 1, 2]


@pytest.mark.parametrize("contiguous", [True, False])
def test_objects_are_limited_and_their_memory_is_reused(contiguous):
    rings = pool(objects=2, contiguous=contiguous)
    a, b = rings.open(), rings.open()
    for memory in (a, b):
        memory.allocate()
    with pytest.raises(UserError, match="all 2 objects .* max_objects"):
        rings.open()
    chunks = rings.num_chunks
    assert rings.rows == (2, 0)
    a.ring_block(0)
    a.close()
    assert rings.rows == (1, 1)
    again = rings.open()
    assert again.filled == 0 and again.allocate().number == 0
    for memory in (b, again, again, a):
        memory.close()
    assert (rings.in_use, rings.num_chunks) == (0, chunks)


def test_the_lowest_free_block_is_allocated_first():
    memory = pool(contiguous=False).open(grows=True)
    blocks = [memory.allocate() for _ in range(5)]
    assert [b.number for b in blocks] == [0, 1, 2, 3, 4]
    for number in (3, 1):
        memory.free(blocks[number])
    assert [memory.allocate().number for _ in range(3)] == [1, 3, 5]
    arrays = [b.array for b in blocks]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(arrays) for b in arrays[:i])


def test_a_memory_that_does_not_grow_has_one_chunk():
    memory = pool(blocks=2, contiguous=False).open()
    memory.allocate(), memory.allocate()
    with pytest.raises(AssertionError, match="its 2 blocks"):
        memory.allocate()
