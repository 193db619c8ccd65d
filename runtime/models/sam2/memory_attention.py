"""Memory attention of SAM 2: image features of a frame, conditioned on the memory of each object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from ...device.base import Array, Device
from ...device.scratch import GrowableBuffers
from ...tracking.memory_selection import MemorySelection
from ...tracking.requests import DecodeRequest, ImageFeatures

if TYPE_CHECKING:
    from ...backends.base import Stage

MAX_ATTENTION_TOKENS = 8192
"""Map positions in one call on a CPU. There more objects in a call save no time, and each takes more than a gigabyte at
1024 pixels."""


class MemoryAttention:
    """Runs the stage `memory_attention` for any number of objects on one frame."""

    def __init__(self, stage: Stage, device: Device, scratch: GrowableBuffers, batch: int) -> None:
        self._stage, self._device, self._scratch = stage, device, scratch
        self._spec = stage.spec
        tokens = self._spec.output("conditioned").shape[1]
        assert isinstance(tokens, int)
        self._objects_per_call = max(1, min(batch, MAX_ATTENTION_TOKENS // tokens)) if device.name == "cpu" else batch

    def allocate(self, sizes: Mapping[str, int]) -> None:
        """Allocate scratch for calls of these sizes."""
        for tensor in (self._spec.input("memory"), *self._spec.outputs):
            self._scratch.take(tensor.name, tensor.resolve(sizes), tensor.dtype)

    def condition(self, features: ImageFeatures, requests: Sequence[DecodeRequest]) -> Array:
        """Return the conditioned embedding of each request, (requests, N, D). Requests of equal memory shape must be
        neighbours: each run of them shares calls."""
        if len(requests) == 1 and requests[0].memory is None:
            return self._without_memory(features, requests[0])
        tensor = self._spec.output("conditioned")
        out = self._scratch.take(tensor.name, tensor.resolve({"objects": len(requests)}), tensor.dtype)
        start = 0
        for _, run in groupby(requests, key=lambda request: request.memory_shape):
            group = list(run)
            self._condition_run(features, group, out[start : start + len(group)])
            start += len(group)
        return out

    def _condition_run(self, features: ImageFeatures, requests: list[DecodeRequest], out: Array) -> None:
        memories = [request.memory for request in requests if request.memory is not None and request.memory.blocks]
        pictures = np.array([request.picture for request in requests], np.int64)
        for i in range(0, len(memories), self._objects_per_call):
            some = slice(i, i + self._objects_per_call)
            self._attend(features, memories[some], pictures[some], out[some])
        if not memories:
            for request, to in zip(requests, out, strict=True):
                self._device.copy(self._without_memory(features, request)[0], to)

    @staticmethod
    def _without_memory(features: ImageFeatures, request: DecodeRequest) -> Array:
        maps = features.embedding if request.skip_no_mem_embed else features.embedding_no_memory
        return maps[request.picture : request.picture + 1]

    def _attend(
        self, features: ImageFeatures, memories: list[MemorySelection], pictures: np.ndarray, out: Array
    ) -> None:
        n, spec = len(memories), self._spec.input("obj_ptrs")
        pointers = np.zeros((n, len(memories[0].obj_ptrs), int(spec.shape[2])), spec.dtype)
        for row, memory in zip(pointers, memories, strict=True):
            if memory.obj_ptrs:
                row[:] = memory.obj_ptrs
        inputs = {"obj_ptrs": pointers}
        if any(tensor.name == "obj_ptr_tpos" for tensor in self._spec.inputs):
            inputs["obj_ptr_tpos"] = _relative_distances(memories)
        self._stage.run(
            embedding=features.embedding,
            map_index=pictures,
            memory=self._gather(memories),
            maskmem_tpos_index=np.array([memory.tpos for memory in memories], np.int64),
            conditioned=out,
            **inputs,
        )

    def _gather(self, memories: list[MemorySelection]) -> Array:
        """Copy the remembered maps of the objects side by side: (objects, slots, N, M).

        They lie apart: a conditioning frame, the latest frames, an old one that a correction may still need between
        them. The copy is a few megabytes per object and frame, a thousandth of the time that attention to them takes.
        """
        tensor = self._spec.input("memory")
        sizes = {"objects": len(memories), "slots": len(memories[0].blocks)}
        out = self._scratch.take(tensor.name, tensor.resolve(sizes), tensor.dtype)
        for row, memory in zip(out, memories, strict=True):
            for block, to in zip(memory.blocks, row, strict=True):
                self._device.copy(block.array, to)
        return out


def _relative_distances(memories: list[MemorySelection]) -> np.ndarray:
    """Return the distance of each object pointer as a part of the largest, (objects, pointers) float32."""
    largest = np.array([[max(memory.max_distance, 1)] for memory in memories], np.float32)
    distances = np.array([memory.distances for memory in memories], np.float32).reshape(len(memories), -1)
    return distances / largest
