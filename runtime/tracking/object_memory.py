"""Object memory: blocks of remembered features, allocated once and reused.

A *block* holds one remembered map (tokens, channels) or one object pointer (width,). Blocks come in *chunks* of a fixed
number; a `BlockPool` hands chunks to objects and takes them back, and nothing is returned to the device before the pool
goes. An `ObjectMemory` holds the blocks of one object and is used in one of two ways:

- as a ring (SAMWISE): `ring_block(frame)` overwrites the oldest block in place. Attention does not see the order of its
  keys, so nothing is rolled, concatenated or copied from frame to frame. Blocks in use are always a prefix, and with a
  contiguous pool the prefixes of neighbouring objects are read as one array.
- as blocks that come and go (SAM 2): `allocate` gives the lowest free block, `free` returns one that no later frame can
  attend to. In a live video one chunk is always enough; where all frames are known, the memory grows by whole chunks.
"""

from __future__ import annotations

import gc
import heapq
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..device.base import Device
from ..errors import Busy


def ring_ages(frame: int, slots: int) -> np.ndarray:
    """Return the row of the temporal embedding of each filled slot, seen from `frame`: 0 is the frame just before.

    Slot s holds the newest earlier frame that is s modulo `slots`.
    """
    return (frame - 1 - np.arange(min(frame, slots), dtype=np.int64)) % slots


@dataclass(frozen=True, slots=True)
class Block:
    """One block; `array` is its memory on the device, `number` its position among the blocks of its object."""

    array: Any
    number: int


@dataclass(frozen=True, slots=True)
class DecodedMemory:
    """Features of one map that were computed with its mask, on the device; `batch`: number of the batch that it was
    decoded in, whose features are there until the next one."""

    features: Any
    batch: int


class BlockPool:
    """Chunks of `blocks` blocks each, for at most `capacity` objects at a time.

    `array` (capacity, blocks, *shape) holds all chunks of a contiguous pool; another pool allocates chunks on demand,
    and has None. An object that closes, or that is garbage, leaves its chunks in a queue without taking a lock: the
    garbage collector may run at any point of any thread. The pool takes them from there when it is used next.
    """

    def __init__(
        self, device: Device, capacity: int, blocks: int, shape: Sequence[int], dtype: str, contiguous: bool = False
    ) -> None:
        self._device, self._shape, self._dtype = device, (blocks, *shape), dtype
        self.capacity, self.blocks = capacity, blocks
        self._num_open = 0
        self._closed: deque[list[tuple[int, Any]]] = deque()
        self.array = device.empty((capacity, *self._shape), dtype) if contiguous else None
        # the lowest chunk is used first, so that objects that start together are neighbours
        self._free = [] if self.array is None else [(i, self.array[i]) for i in range(capacity)]
        self.num_chunks = len(self._free)

    @property
    def in_use(self) -> int:
        """Number of objects that are open."""
        while self._closed:
            for chunk in self._closed.popleft():
                heapq.heappush(self._free, chunk)
            self._num_open -= 1
        return self._num_open

    @property
    def rows(self) -> tuple[int, int]:
        """Numbers of objects that are open, and for which there is room; any thread may ask."""
        used = self._num_open - len(self._closed)
        return used, self.capacity - used

    def check_room(self, objects: int) -> None:
        """Raise Busy unless `objects` more fit."""
        if objects > self.capacity - self.in_use:
            gc.collect()  # sessions in reference cycles
        if objects > self.capacity - self.in_use:
            raise Busy(
                f"no room for {objects} more: of all {self.capacity} objects of the engine, {self.in_use} are in use; "
                "remove an object, close a session, or load the engine with a larger max_objects"
            )

    def open(self, grows: bool = False) -> ObjectMemory:
        """Start the memory of a new object; `grows`: it may take more than one chunk.

        Raises Busy when `capacity` objects are open.
        """
        self.check_room(1)
        memory = ObjectMemory(self, grows)
        self._num_open += 1
        return memory

    def take_chunk(self) -> tuple[int, Any]:
        """Return the number and array (blocks, *shape) of a chunk, one that was used before if there is one."""
        if self._free:
            return heapq.heappop(self._free)
        self.num_chunks += 1
        return self.num_chunks - 1, self._device.empty(self._shape, self._dtype)

    def give_back(self, chunks: list[tuple[int, Any]]) -> None:
        """Take back the chunks of an object that closes."""
        self._closed.append(chunks)


class ObjectMemory:
    """The blocks of one object; made by `BlockPool.open`."""

    def __init__(self, pool: BlockPool, grows: bool) -> None:
        self._pool, self._grows = pool, grows
        self._chunks = [pool.take_chunk()] if pool.array is not None else []
        self._free = list(range(len(self._chunks) * pool.blocks))
        self._finalizer = weakref.finalize(self, pool.give_back, self._chunks)
        self._finalizer.atexit = False
        self.filled = 0
        """Blocks of the ring that hold a frame; always the first ones."""

    @property
    def index(self) -> int:
        """Position of this object in the array of a contiguous pool."""
        return self._chunks[0][0]

    def ring_block(self, frame: int) -> Any:
        """Return the block to write `frame` into: the oldest one. Frames are counted from 0 and come one by one."""
        position = frame % self._pool.blocks
        self.filled = max(self.filled, position + 1)
        return self._chunks[0][1][position]

    def restart(self) -> None:
        """Forget all frames of the ring."""
        self.filled = 0

    def allocate(self) -> Block:
        """Return the lowest free block."""
        blocks = self._pool.blocks
        if not self._free:
            if self._chunks and not self._grows:
                raise AssertionError(f"an object that does not grow needs more than its {blocks} blocks")
            first = len(self._chunks) * blocks
            self._chunks.append(self._pool.take_chunk())
            self._free = list(range(first, first + blocks))
        number = heapq.heappop(self._free)
        chunk, position = divmod(number, blocks)
        return Block(self._chunks[chunk][1][position], number)

    def free(self, block: Block) -> None:
        """Return a block; it is overwritten when it is allocated again."""
        heapq.heappush(self._free, block.number)

    def close(self) -> None:
        """Return all chunks to the pool. Closing twice is harmless."""
        self._finalizer()
