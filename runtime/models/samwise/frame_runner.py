"""Execution of one frame for a batch of tracks: inputs, decoder, object memory, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod

import numpy as np

from ...bundle.manifest import StageSpec, TensorSpec
from ...device.base import Array, Device
from ...device.scratch import ReadbackBuffer, ScratchBuffers
from ...tracking.object_memory import ObjectMemory
from .frame_decoder import FrameDecoder
from .graph_cache import GraphCache
from .state import FrameInputs, TextTrack, TrackBatch
from .transforms import Transforms


class FrameRunner:
    """Runs a `FrameDecoder` frame by frame on the memory of the tracks."""

    def __init__(
        self,
        decoder: FrameDecoder,
        device: Device,
        scratch: ScratchBuffers,
        specs: Mapping[str, StageSpec],
        sizes: Mapping[str, int],
        memory: Mapping[str, Array],
    ) -> None:
        """`memory`: input of memory attention -> array of all objects that it reads (max_objects, blocks, ...)."""
        self._decoder, self._device, self._scratch, self._memory = decoder, device, scratch, memory
        self._slots, self._pointers = sizes["slots"], sizes["pointers"]
        attention, mask_decoder = specs["memory_attention"], specs["mask_decoder"]
        for name in ("embedding", "embedding_no_memory"):
            scratch.add("batch_" + name, attention.input("embedding"))
        scratch.add("batch_high_res_1", mask_decoder.input("high_res_1"))
        scratch.add("batch_high_res_0", mask_decoder.input("high_res_0"), pictures=1)
        inputs = (attention.input(name) for name in ("memory", "maskmem_tpos_index", "obj_ptrs"))
        self._static_buffers = {t.name: device.empty(t.resolve(sizes), t.dtype) for t in inputs}
        self._results = [mask_decoder.output(name) for name in ("low_res_logits", "iou", "score")]
        if "conditional_memory" in specs:
            self._results.append(specs["conditional_memory"].output("switched"))

    def new_batch(self, tracks: Sequence[TextTrack], cme: Mapping[str, int] | None, uses_memory: bool) -> TrackBatch:
        """Allocate the arrays that the frames of these tracks share."""
        n, slots, constant = len(tracks), self._slots, self._device.constant
        return TrackBatch(
            tracks,
            sparse_count=constant(np.array([track.sparse_count for track in tracks], np.int64)),
            maskmem_tpos_indices=[constant(np.tile(ring_ages(f, slots), (n, 1))) for f in range(2 * slots)],
            readback=self.new_readback(n),
            graphs=GraphCache(self._device, first_frame=max(slots, self._pointers)),
            cme=cme,
            uses_memory=uses_memory,
        )

    def new_readback(self, num_tracks: int, more: Sequence[TensorSpec] = ()) -> ReadbackBuffer:
        """Allocate the outputs that are copied to the host after each frame: the decoder's, and `more`."""
        return ReadbackBuffer(self._device, [*self._results, *more], num_tracks, optional=("low_res_logits",))

    def run(
        self, batch: TrackBatch, clip: Mapping[str, Array], frame: int, offset: int, transforms: Transforms
    ) -> dict[str, np.ndarray]:
        """Decode frame number `frame`, `offset` in its clip; return host views by name, valid until the next frame."""
        due, graph_ready = batch.cme_due(frame), batch.graphs.graph_ready(frame)
        inputs = self._inputs(batch, clip, frame, offset, due, graph_ready)
        outputs = self._decoder.outputs(batch.readback, len(batch.tracks))
        slots = [track.maskmem.ring_block(frame) for track in batch.tracks]
        if graph_ready:  # a graph writes to fixed addresses; its memory is copied to the slot of the frame afterwards
            batch.graphs.run(tuple(due), partial(self._decoder.decode, inputs, outputs, None))
        else:
            self._decoder.decode(inputs, outputs, slots)
        for i, track in enumerate(batch.tracks):
            self._device.copy(outputs["obj_ptr"][i], track.obj_ptrs.ring_block(frame))
            if graph_ready:
                self._device.copy(outputs["maskmem_features"][i], slots[i])
        read = transforms.read(batch.readback)
        for i, at in enumerate(due):
            if read["switched"][i]:
                batch.tracks[at].last_switch_frame = frame
        return read

    def _inputs(
        self, batch: TrackBatch, clip: Mapping[str, Array], frame: int, offset: int, due: Sequence[int], static: bool
    ) -> FrameInputs:
        """Gather the inputs of a frame. `static`: at the same addresses on every frame."""

        def gather(name: str, tracks: Sequence[TextTrack]) -> Array:
            return self._scratch.gather("batch_" + name, [track.features[name][offset] for track in tracks], static)

        tracks, has_memory = batch.tracks, batch.uses_memory and frame > 0
        without_memory = [tracks[i] for i in due] if has_memory else tracks
        return FrameInputs(
            embedding=gather("embedding", tracks),
            embedding_no_memory=gather("embedding_no_memory", without_memory) if without_memory else None,
            high_res_0=self._scratch.gather("batch_high_res_0", [clip["high_res_0"][offset]], static),
            high_res_1=gather("high_res_1", tracks),
            sparse=[track.features["sparse"][0] for track in tracks],
            sparse_count=batch.sparse_count,
            cme_due=due,
            **(self._memory_inputs(batch, frame, static) if has_memory else {}),
        )

    def _memory_inputs(self, batch: TrackBatch, frame: int, static: bool) -> dict[str, Array]:
        slots = self._slots
        ages = batch.maskmem_tpos_indices[frame if frame < slots else slots + frame % slots]
        if static:
            buffer = self._static_buffers["maskmem_tpos_index"][: len(batch.tracks)]
            self._device.copy(ages, buffer)
            ages = buffer
        return {
            "memory": self._filled("memory", [track.maskmem for track in batch.tracks]),
            "obj_ptrs": self._filled("obj_ptrs", [track.obj_ptrs for track in batch.tracks]),
            "maskmem_tpos_index": ages,
        }

    def _filled(self, name: str, memories: Sequence[ObjectMemory]) -> Array:
        """Return the filled prefixes of rings as (rings, filled, ...).

        One ring, and neighbouring rings that are full, are read in place. Prefixes of several rings have gaps between
        them, so they are copied; after a few frames the rings are full.
        """
        pool, rows, filled = self._memory[name], [memory.index for memory in memories], memories[0].filled
        first, n = rows[0], len(rows)
        if n == 1 or (filled == pool.shape[1] and rows == list(range(first, first + n))):
            return pool[first : first + n, :filled]
        buffer = self._static_buffers[name]
        shape = (n, filled, *buffer.shape[2:])
        out = buffer.reshape(-1)[: prod(shape)].reshape(*shape)
        for row, to in zip(rows, out, strict=True):
            self._device.copy(pool[row, :filled], to)
        return out


def ring_ages(frame: int, slots: int) -> np.ndarray:
    """Return the row of the temporal embedding of each filled slot, seen from `frame`: 0 is the frame just before.

    Slot s holds the newest earlier frame that is s modulo `slots`.
    """
    return (frame - 1 - np.arange(min(frame, slots), dtype=np.int64)) % slots
