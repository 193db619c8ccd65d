"""Execution of one frame for a batch of tracks: inputs, decoder, object memory, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ...bundle.manifest import StageSpec, TensorSpec
from ...device.base import Array, Device
from ...device.graphs import GraphCache
from ...device.scratch import ReadbackBuffer, ScratchBuffers
from ...tracking.object_memory import ObjectMemory, ring_ages
from .frame_decoder import FrameDecoder
from .state import BatchFrame, FrameInputs, TextTrack, TrackBatch
from .transforms import Read


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
        self._zeros = device.constant(np.zeros(mask_decoder.output("iou").resolve(sizes)[0], np.int64))
        inputs = (attention.input(name) for name in ("memory", "maskmem_tpos_index", "obj_ptrs"))
        self._static_buffers = {t.name: device.empty(t.resolve(sizes), t.dtype) for t in inputs}
        self.results = [mask_decoder.output(name) for name in ("low_res_logits", "iou", "score")]
        if "conditional_memory" in specs:
            self.results.append(specs["conditional_memory"].output("switched"))

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
        return ReadbackBuffer(self._device, [*self.results, *more], num_tracks, optional=("low_res_logits",))

    def start(self, item: BatchFrame, remembers: bool = True) -> None:
        """Enqueue the work of a frame; without `remembers`, `remember` has to follow before the next one."""
        batch, frame = item.batch, item.frame
        graph_ready = batch.graphs.graph_ready(frame)
        inputs = self._inputs(item, graph_ready)
        outputs = self._decoder.outputs(batch.readback, len(batch.tracks))
        if graph_ready:  # a graph writes to fixed addresses; its memory is copied to the slot of the frame afterwards
            batch.graphs.run(tuple(item.due), partial(self._decoder.decode, inputs, outputs, None))
        elif not remembers:
            self._decoder.decode(inputs, outputs, None)
        else:
            slots = [track.maskmem.ring_block(frame) for track in batch.tracks]
            self._decoder.decode(inputs, outputs, slots)
            self._remember(item, ["obj_ptr"])
            return
        if remembers:
            self.remember(item)

    def remember(self, item: BatchFrame) -> None:
        """Write what the frame that was started last remembers."""
        self._remember(item, ["obj_ptr", "maskmem_features"])

    def _remember(self, item: BatchFrame, names: Sequence[str]) -> None:
        outputs = self._decoder.outputs(item.batch.readback, len(item.batch.tracks))
        for i, track in enumerate(item.batch.tracks):
            rings = {"obj_ptr": track.obj_ptrs, "maskmem_features": track.maskmem}
            for name in names:
                self._device.copy(outputs[name][i], rings[name].ring_block(item.frame))

    def begin_read(self, item: BatchFrame) -> Read:
        """Enqueue the copy of the results of a frame that was started."""
        return item.transforms.begin_read(item.batch.readback)

    def finish(self, item: BatchFrame, reading: Read) -> dict[str, np.ndarray]:
        """Wait for a frame; return host views by name, valid until a later frame of the batch is read."""
        read = reading()
        for i, at in enumerate(item.due):
            if read["switched"][i]:
                item.batch.tracks[at].last_switch_frame = item.frame
        return read

    def _inputs(self, item: BatchFrame, static: bool) -> FrameInputs:
        """Gather the inputs of a frame. `static`: at the same addresses on every frame."""
        tracks = item.batch.tracks
        return self.gather_maps(
            [item],
            item.due,
            static,
            high_res_0=self._scratch.gather("batch_high_res_0", [item.clip["high_res_0"][item.offset]], static),
            sparse=[track.features["sparse"][0] for track in tracks],
            sparse_count=item.batch.sparse_count,
            picture_index=self._zeros[: len(tracks)],
            picture_index_due=self._zeros[: len(item.due)],
            **(self._memory_inputs(item.batch, item.frame, static) if item.has_memory else {}),
        )

    def gather_maps(self, items: Sequence[BatchFrame], due: Sequence[int], static: bool, **own: Any) -> FrameInputs:
        """Gather the maps of the tracks of frames, to the same addresses on every frame if `static`; `due`: tracks of
        all of them whose conditional memory is due. `own` are the other inputs."""
        rows, has_memory = [(item, track) for item in items for track in item.batch.tracks], items[0].has_memory

        def gather(name: str, rows: Sequence[tuple[BatchFrame, TextTrack]]) -> Array:
            return self._scratch.gather("batch_" + name, [t.features[name][item.offset] for item, t in rows], static)

        without_memory = [rows[i] for i in due] if has_memory else rows
        return FrameInputs(
            embedding=gather("embedding", rows),
            embedding_no_memory=gather("embedding_no_memory", without_memory) if without_memory else None,
            high_res_1=gather("high_res_1", rows),
            cme_due=due,
            **own,
        )

    def _memory_inputs(self, batch: TrackBatch, frame: int, static: bool) -> dict[str, Array]:
        ages = self.slot_ages(batch, frame)
        if static:
            buffer = self._static_buffers["maskmem_tpos_index"][: len(batch.tracks)]
            self._device.copy(ages, buffer)
            ages = buffer
        return {
            "memory": self.filled("memory", [track.maskmem for track in batch.tracks]),
            "obj_ptrs": self.filled("obj_ptrs", [track.obj_ptrs for track in batch.tracks]),
            "maskmem_tpos_index": ages,
        }

    def slot_ages(self, batch: TrackBatch, frame: int) -> Array:
        """Return `ring_ages` of every track, (tracks, filled)."""
        slots = self._slots
        return batch.maskmem_tpos_indices[frame if frame < slots else slots + frame % slots]

    def filled(self, name: str, memories: Sequence[ObjectMemory], static: bool = False) -> Array:
        """Return the filled prefixes of rings as (rings, filled, ...), copied to one place if `static`.

        One ring, and neighbouring rings that are full, are read in place. Prefixes of several rings have gaps between
        them, so they are copied; after a few frames the rings are full.
        """
        pool, rows, filled = self._memory[name], [memory.index for memory in memories], memories[0].filled
        first, n = rows[0], len(rows)
        in_place = not static and (n == 1 or (filled == pool.shape[1] and rows == list(range(first, first + n))))
        if in_place:
            return pool[first : first + n, :filled]
        buffer = self._static_buffers[name]
        shape = (n, filled, *buffer.shape[2:])
        out = buffer.reshape(-1)[: prod(shape)].reshape(*shape)
        for row, to in zip(rows, out, strict=True):
            self._device.copy(pool[row, :filled], to)
        return out
