"""Memory of the objects of a concept: groups that share conditioning frames (rules of SAM 3's video model).

Objects that were born on the same frame are a *group*. A detection that corrects one of them makes the frame a
conditioning frame of all. With temporal disambiguation a frame is remembered by its *quality*, the mean over the group
of how present its objects are and how good their masks: frames of low quality are skipped.

When an object leaves, the others attend to what they would without it: frames that it alone was prompted on are plain
ones, and quality is a mean over the rest. So everything is kept while objects may turn out to be false. Of objects that
a user removes later, older frames are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..imaging.masks import probability
from .memory_selection import MemoryConfig, MemorySelection, select_cond_frames
from .object_memory import Block, BlockPool, ObjectMemory

MAX_COND_FRAMES = 4
"""Conditioning frames that are attended to, the nearest ones."""

MIN_QUALITY = 0.01
"""Quality above which a frame is remembered."""


@dataclass(slots=True)
class FrameMemory:
    """What an object remembers of a frame: pointer (D,), presence logit, predicted IoU; its map once it is written."""

    obj_ptr: np.ndarray
    score: float
    iou: float
    block: Block | None = None


Frames = dict[int, dict[int, FrameMemory]]
"""Memory by frame, then by object."""


def blocks_per_object(config: MemoryConfig, hotstart_delay: int) -> int:
    """Return the number of maps that an object remembers at most, the one that is written included."""
    return max(MAX_COND_FRAMES + config.num_maskmem + 1, hotstart_delay)


class ObjectGroup:
    """Objects that were born on one frame, in the order of their birth. Before frame `settled` all is remembered."""

    def __init__(self, pool: BlockPool, config: MemoryConfig, by_quality: bool, settled: int) -> None:
        self._pool, self._config, self._by_quality, self._settled = pool, config, by_quality, settled
        self._memories: dict[int, ObjectMemory] = {}
        self._prompted: dict[int, set[int]] = {}
        """Conditioning frame -> objects that a mask or points prompted there."""
        self.cond: Frames = {}
        self.plain: Frames = {}

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of the objects."""
        return tuple(self._memories)

    def open(self, object_ids: Iterable[int]) -> None:
        """Add objects. Raises UserError when there is no room."""
        for obj in object_ids:
            self._memories[obj] = self._pool.open()

    def close(self) -> None:
        """Return the memory of all objects."""
        for memory in self._memories.values():
            memory.close()
        self._memories.clear()

    # -- a frame --------------------------------------------------------------------------------------------------

    def select(self, frame: int, num_frames: int | None) -> dict[int, MemorySelection]:
        """Select what each object attends to from `frame` of `num_frames` frames (None: without end)."""
        chosen, others = select_cond_frames(frame, self.cond, MAX_COND_FRAMES)
        pointers = self._config.max_obj_ptrs if num_frames is None else min(self._config.max_obj_ptrs, num_frames)
        ranked = self._ranked(frame, pointers)
        maps = dict(enumerate(ranked[: self._config.num_maskmem - 1]))
        # by quality, the oldest frame gives no pointer
        limit = len(ranked) - 1 if self._by_quality else pointers - 1
        plain = {**others, **self.plain}
        return {
            obj: MemorySelection(
                *self._maps(obj, chosen, {rank: plain[past] for rank, past in maps.items() if past in plain}),
                obj_ptrs=[memory[obj].obj_ptr for past, memory in chosen.items() if past <= frame]
                + [plain[past][obj].obj_ptr for past in ranked[:limit] if past in plain],
                distances=[frame - past for past in chosen if past <= frame]
                + [rank for rank, past in enumerate(ranked[:limit], 1) if past in plain],
                max_distance=pointers - 1,
            )
            for obj in self._memories
        }

    def _maps(
        self, obj: int, chosen: Mapping[int, dict[int, FrameMemory]], plain: Mapping[int, dict[int, FrameMemory]]
    ) -> tuple[list[Block], list[int]]:
        """Return the blocks that an object attends to, and their rows of the temporal embedding."""
        found = [(self._config.num_maskmem - 1, memory[obj].block) for memory in chosen.values()]
        found += [(rank, memory[obj].block) for rank, memory in plain.items()]
        there = [(row, block) for row, block in found if block is not None]
        return [block for _, block in there], [row for row, _ in there]

    def _ranked(self, frame: int, pointers: int) -> list[int]:
        """Return the frames to attend to besides conditioning ones, newest first."""
        if not self._by_quality:
            return list(range(frame - 1, max(-1, frame - max(pointers, self._config.num_maskmem)), -1))
        good = sorted((t for t in self.plain if 0 < t < frame and self._quality(t) > MIN_QUALITY), reverse=True)
        ranked = good[: pointers - 1]
        return ranked if frame - 1 in ranked else [frame - 1, *ranked]

    def _quality(self, frame: int) -> float:
        memories = [memory for obj, memory in self.plain[frame].items() if obj in self._memories]
        presence = 2 * probability([memory.score for memory in memories]) - 1
        return float(np.mean(np.maximum(presence, 0) * [memory.iou for memory in memories]))

    def store(self, frame: int, memories: Mapping[int, FrameMemory]) -> None:
        """Store what the objects remember of a tracked frame."""
        self.plain[frame] = dict(memories)

    def condition(self, frame: int, prompted: Mapping[int, FrameMemory]) -> None:
        """Make a conditioning frame of `frame`; objects without a prompt there keep what they remember of it."""
        memories = self.plain.pop(frame, None) or self.cond.get(frame, {})
        for obj, memory in prompted.items():
            memory.block = memory.block or (memories[obj].block if obj in memories else None)
        self.cond[frame] = {**memories, **prompted}
        self._prompted.setdefault(frame, set()).update(prompted)

    def blocks(self, frame: int, objects: Collection[int]) -> list[Block]:
        """Return the blocks to write what these objects remember of `frame` into."""
        memories = self.cond.get(frame) or self.plain[frame]
        for obj in objects:
            memories[obj].block = memories[obj].block or self._memories[obj].allocate()
        return [block for obj in objects if (block := memories[obj].block) is not None]

    def remove(self, obj: int) -> None:
        """Remove an object. Frames that it alone was prompted on become plain, unless no conditioning frame is left."""
        self._memories.pop(obj).close()
        for memories in (*self.cond.values(), *self.plain.values()):
            memories.pop(obj, None)
        for frame, prompted in list(self._prompted.items()):
            prompted.discard(obj)
            if not prompted and len(self.cond) > 1:
                del self._prompted[frame]
                self.plain[frame] = self.cond.pop(frame)

    def prune(self, frame: int) -> None:
        """Drop what no frame after `frame` can attend to."""
        if frame < self._settled:
            return
        config = self._config
        for past in sorted(self.cond)[:-MAX_COND_FRAMES]:
            self._prompted.pop(past, None)
            self._free_blocks(self.cond.pop(past))
        newest = sorted((t for t in self.plain if t < frame), reverse=True)
        if self._by_quality:
            # a frame that is skipped is attended to from the next frame only
            good = [t for t in newest if t > 0 and self._quality(t) > MIN_QUALITY]
            maps, pointers = good[: config.num_maskmem - 2], good[: config.max_obj_ptrs - 1]
        else:
            maps = [t for t in newest if t > frame + 1 - config.num_maskmem]
            pointers = [t for t in newest if t > frame + 1 - config.max_obj_ptrs]
        for past in newest:
            if past not in maps:
                self._free_blocks(self.plain[past])
            if past not in pointers:
                del self.plain[past]

    def _free_blocks(self, memories: Mapping[int, FrameMemory]) -> None:
        for obj, memory in memories.items():
            if memory.block is not None:
                self._memories[obj].free(memory.block)
                memory.block = None
