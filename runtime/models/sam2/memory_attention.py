"""Memory attention of SAM 2: image features of a frame, conditioned on the memory of each object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ...device.array import merged
from ...device.base import Array, Device
from ...device.scratch import GrowableBuffers, aligned
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
        computed = ("embedding", "memory")
        self._input_names = [tensor.name for tensor in self._spec.inputs if tensor.name not in computed]
        tokens = self._spec.output("conditioned").shape[1]
        assert isinstance(tokens, int)
        self._objects_per_call = max(1, min(batch, MAX_ATTENTION_TOKENS // tokens)) if device.name == "cpu" else batch

    def allocate(self, sizes: Mapping[str, int]) -> None:
        """Allocate scratch for calls of these sizes."""
        for tensor in (self._spec.input("memory"), *self._spec.outputs):
            self._scratch.take(tensor.name, tensor.resolve(sizes), tensor.dtype)

    def num_input_bytes(self, sizes: Mapping[str, int]) -> int:
        """Return the bytes of `host_inputs` of a call of these sizes."""
        tensors = [self._spec.input(name) for name in self._input_names]
        return sum(aligned(prod(t.resolve(sizes)) * np.dtype(t.dtype).itemsize) for t in tensors)

    def host_inputs(self, requests: Sequence[DecodeRequest]) -> dict[str, np.ndarray]:
        """Return what `condition` needs on the device, by place of the call and name of the input."""
        return {
            f"{start}.{name}": array
            for start, call in self._calls(requests)
            if _attends(call[0])
            for name, array in self._call_inputs(call).items()
        }

    def condition(
        self, features: ImageFeatures, requests: Sequence[DecodeRequest], inputs: Mapping[str, Array]
    ) -> Array:
        """Return the conditioned embedding of each request, (requests, N, D); `inputs`: see `host_inputs`. Requests of
        equal memory shape must be neighbours: each run of them shares calls."""
        if len(requests) == 1 and requests[0].memory is None:
            return self._without_memory(features, requests[0])
        tensor = self._spec.output("conditioned")
        out = self._scratch.take(tensor.name, tensor.resolve({"objects": len(requests)}), tensor.dtype)
        for start, call in self._calls(requests):
            if _attends(call[0]):
                own = {name: inputs[f"{start}.{name}"] for name in self._input_names}
                self._attend(features, call, own, out[start : start + len(call)])
                continue
            for i, request in enumerate(call, start):
                self._device.copy(self._without_memory(features, request)[0], out[i])
        return out

    def _calls(self, requests: Sequence[DecodeRequest]) -> Iterator[tuple[int, list[DecodeRequest]]]:
        """Yield the requests that share a call, and the place of the first."""
        start = 0
        for _, run in groupby(requests, key=lambda request: request.memory_shape):
            group = list(run)
            for i in range(0, len(group), self._objects_per_call):
                yield start + i, group[i : i + self._objects_per_call]
            start += len(group)

    @staticmethod
    def _without_memory(features: ImageFeatures, request: DecodeRequest) -> Array:
        maps = features.embedding if request.skip_no_mem_embed else features.embedding_no_memory
        return maps[request.picture : request.picture + 1]

    def _call_inputs(self, requests: list[DecodeRequest]) -> dict[str, np.ndarray]:
        memories, spec = _memories(requests), self._spec.input("obj_ptrs")
        pointers = np.zeros((len(memories), len(memories[0].obj_ptrs), int(spec.shape[2])), spec.dtype)
        for row, memory in zip(pointers, memories, strict=True):
            if memory.obj_ptrs:
                row[:] = memory.obj_ptrs
        inputs = {
            "map_index": np.array([request.picture for request in requests], np.int64),
            "maskmem_tpos_index": np.array([memory.tpos for memory in memories], np.int64),
            "obj_ptrs": pointers,
            "obj_ptr_tpos": _relative_distances(memories),
        }
        return {name: inputs[name] for name in self._input_names}

    def _attend(
        self, features: ImageFeatures, requests: list[DecodeRequest], inputs: Mapping[str, Array], out: Array
    ) -> None:
        memory = self._gather(_memories(requests))
        self._stage.run(embedding=features.embedding, memory=memory, conditioned=out, **inputs)

    def _gather(self, memories: list[MemorySelection]) -> Array:
        """Copy the remembered maps of the objects side by side: (objects, slots, N, M).

        They lie apart: a conditioning frame, the latest frames, an old one that a correction may still need between
        them. The copy is a few megabytes per object and frame, a thousandth of the time that attention to them takes.
        """
        tensor = self._spec.input("memory")
        sizes = {"objects": len(memories), "slots": len(memories[0].blocks)}
        out = self._scratch.take(tensor.name, tensor.resolve(sizes), tensor.dtype)
        for row, memory in zip(out, memories, strict=True):
            for first, stop, blocks in merged([block.array for block in memory.blocks]):
                self._device.copy(blocks, row[first:stop])
        return out


def _attends(request: DecodeRequest) -> bool:
    return request.memory is not None and bool(request.memory.blocks)


def _memories(requests: Sequence[DecodeRequest]) -> list[MemorySelection]:
    return [request.memory for request in requests if request.memory is not None]


def _relative_distances(memories: list[MemorySelection]) -> np.ndarray:
    """Return the distance of each object pointer as a part of the largest, (objects, pointers) float32."""
    largest = np.array([[max(memory.max_distance, 1)] for memory in memories], np.float32)
    distances = np.array([memory.distances for memory in memories], np.float32).reshape(len(memories), -1)
    return distances / largest
