"""Groups of objects that lose one: the rest attends to what it would without it. No network."""

import numpy as np
import pytest

from runtime.device.base import Cpu
from runtime.tracking.memory_selection import MemoryConfig
from runtime.tracking.object_group import FrameMemory, ObjectGroup, blocks_per_object
from runtime.tracking.object_memory import BlockPool

CONFIG, HOTSTART, BIRTH = MemoryConfig(num_maskmem=7, max_obj_ptrs=16), 15, 3
STAYS, GOES = 0, 1


class Group:
    """A group in which each map and pointer holds the number of its frame."""

    def __init__(self, objects, by_quality=True):
        pool = BlockPool(Cpu(), 8, blocks_per_object(CONFIG, HOTSTART), (1,), "float32")
        self.group = ObjectGroup(pool, CONFIG, by_quality, BIRTH + HOTSTART - 1 if by_quality else BIRTH)
        self.group.open(objects)
        self.condition(BIRTH, objects)
        self.write(BIRTH)

    def condition(self, frame, objects):
        self.group.condition(frame, {obj: FrameMemory(np.array([frame]), 10.0, 1.0) for obj in objects})

    def write(self, frame):
        for block in self.group.blocks(frame, self.group.object_ids):
            block.array[:] = frame

    def step(self, frame, scores, prompted=()):
        memory = self.group.select(frame, None)[STAYS]
        attended = (
            sorted((row, int(block.array[0])) for row, block in zip(memory.tpos, memory.blocks, strict=True)),
            sorted((distance, int(ptr[0])) for distance, ptr in zip(memory.distances, memory.obj_ptrs, strict=True)),
        )
        ids = self.group.object_ids
        self.group.store(frame, {obj: FrameMemory(np.array([frame]), scores[obj], 0.9) for obj in ids})
        own = [obj for obj in prompted if obj in ids]
        if own:
            self.condition(frame, own)
        self.write(frame)
        return attended


@pytest.mark.parametrize("removed", [BIRTH + 2, BIRTH + 9, BIRTH + HOTSTART - 1])
@pytest.mark.parametrize("absent", [(), range(5, 9), range(4, 17), range(4, 40, 2)], ids=str)
@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.parametrize("turns", [(GOES,), (GOES, STAYS)], ids=str)
def test_the_rest_of_a_group_attends_to_what_it_would_alone(removed, absent, every, turns):
    both, alone = Group([STAYS, GOES]), Group([STAYS])
    for frame in range(BIRTH + 1, 45):
        scores = {STAYS: -3.0 if frame in absent else 2.0, GOES: 2.0}
        prompted = [turns[frame // every % len(turns)]] if frame % every == 0 else []
        together, apart = both.step(frame, scores, prompted), alone.step(frame, scores, prompted)
        if frame > removed:
            assert together == apart, frame
        if frame == removed:
            both.group.remove(GOES)
        both.group.prune(frame)
        alone.group.prune(frame)


@pytest.mark.parametrize("by_quality", [True, False])
def test_an_object_whose_companion_leaves_late_keeps_a_conditioning_frame(by_quality):
    both, scores = Group([STAYS, GOES], by_quality), {STAYS: 2.0, GOES: 2.0}
    for frame in range(BIRTH + 1, 40):
        both.step(frame, scores, [GOES])
        both.group.prune(frame)
    both.group.remove(GOES)
    maps, pointers = both.step(40, scores)
    assert (6, 39) in maps and len(maps) > 1 and (1, 39) in pointers


def test_memory_is_bounded():
    """Blocks suffice: an object that needs more raises AssertionError."""
    group = Group([STAYS, GOES])
    for frame in range(BIRTH + 1, 120):
        group.step(frame, {STAYS: -3.0 if frame % 5 else 2.0, GOES: -3.0 if frame % 7 else 2.0}, [frame % 2])
        group.group.prune(frame)
    assert len(group.group.cond) == 4 and len(group.group.plain) <= CONFIG.max_obj_ptrs
