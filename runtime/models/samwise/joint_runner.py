"""Frames of several text sessions, decoded in one call of each stage.

Sessions whose memories are equally full may be decoded together, at whatever frames of their clips they are. Each keeps
its own memory and results; what the stages read of them is copied side by side, and what they write is copied back.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import numpy as np

from ...bundle.manifest import StageSpec
from ...device.base import Array, Device
from ...device.graphs import GraphCache
from ...device.scratch import ScratchBuffers
from ...tracking.work import Work
from .frame_decoder import FrameDecoder
from .frame_runner import FrameRunner
from .state import BatchFrame, FrameInputs, TrackBatch
from .transforms import Read, Transforms

MAX_GRAPHS = 64
"""Most graphs; one for each combination of numbers of tracks, of tracks whose conditional memory is due, and of filled
blocks."""


class JointRunner:
    """Runs a `FrameDecoder` on one frame each of several batches of tracks."""

    def __init__(
        self,
        decoder: FrameDecoder,
        runner: FrameRunner,
        device: Device,
        scratch: ScratchBuffers,
        specs: Mapping[str, StageSpec],
        sizes: Mapping[str, int],
    ) -> None:
        self._decoder, self.single, self._device, self._scratch = decoder, runner, device, scratch
        self._slots, self._pointers, self.max_tracks = sizes["slots"], sizes["pointers"], sizes["objects"]
        self._graphs = GraphCache(device, max_graphs=MAX_GRAPHS, evicts=True)
        self.lock, n = device.lock, self.max_tracks
        self._decoder_inputs = {name: specs["mask_decoder"].input(name) for name in ("high_res_0", "sparse")}
        self._written = [tensor.name for tensor in runner.results]
        self._numbers = device.constant(np.repeat(np.arange(n, dtype=np.int64)[:, None], n, axis=1))
        """Row i is full of i."""
        self._int_buffers = {
            name: device.empty(shape, "int64")
            for name, shape in (
                ("picture_index", (n,)),
                ("picture_index_due", (n,)),
                ("sparse_count", (n,)),
                ("maskmem_tpos_index", (n * self._slots,)),
            )
        }

    def works(
        self, batches: Sequence[TrackBatch], clip: Mapping[str, Array], frame: int, offset: int, transforms: Transforms
    ) -> list[FrameWork]:
        """Return the work of frame number `frame` of a video, `offset` in its clip, one for each batch of tracks."""
        frames = [BatchFrame(b, clip, frame, offset, transforms, b.cme_due(frame)) for b in batches]
        return [FrameWork(self, frame) for frame in frames]

    def key(self, item: BatchFrame) -> Hashable:
        """Return what must be equal of frames that are decoded together: filled blocks, and whether graphs run."""
        return "samwise", id(self), self._filled(item)

    def _filled(self, item: BatchFrame) -> tuple[int, int] | None:
        return (min(item.frame, self._slots), min(item.frame, self._pointers)) if item.has_memory else None

    def takes(self, item: BatchFrame) -> bool:
        """Tell whether a frame is better decoded here than by `single`: while its memory fills up, when it has another
        shape on each frame, it replays what other sessions recorded."""
        return self._can_record(item) and not self._is_full(item)

    def _is_full(self, item: BatchFrame) -> bool:
        return item.frame >= max(self._slots, self._pointers)

    def _can_record(self, item: BatchFrame) -> bool:
        return self._graphs.graph_ready() and (self._device.records_stages or self._is_full(item))

    def start(self, items: Sequence[BatchFrame]) -> None:
        """Enqueue the work of the frames, which have one key and at most `max_tracks` tracks."""
        # tracks whose conditional memory is due come first, so that they are neighbours
        items = sorted(items, key=lambda item: len(item.due) / len(item.batch.tracks), reverse=True)
        counts = [len(item.batch.tracks) for item in items]
        firsts = list(accumulate(counts, initial=0))
        due = [first + i for first, item in zip(firsts, items, strict=False) for i in item.due]
        inputs = self._inputs(items, counts, due)
        outputs = self._decoder.scratch_outputs(firsts[-1])
        work = partial(self._decoder.decode, inputs, outputs, None)
        if all(map(self._can_record, items)):
            self._graphs.run((tuple(counts), tuple(due), self._filled(items[0])), work)
        else:
            work()
        due_first = 0
        for first, item in zip(firsts, items, strict=False):
            self._hand_back(item, outputs, first, due_first)
            due_first += len(item.due)

    def _hand_back(self, item: BatchFrame, outputs: Mapping[str, Array], first: int, due_first: int) -> None:
        """Copy the results of one session to its own memory and readback buffer."""
        copy, tracks = self._device.copy, item.batch.tracks
        for name in self._written:
            start, count = (due_first, len(item.due)) if name == "switched" else (first, len(tracks))
            if count:
                copy(outputs[name][start : start + count], item.batch.readback.arrays[name][:count])
        for i, track in enumerate(tracks, first):
            copy(outputs["obj_ptr"][i], track.obj_ptrs.ring_block(item.frame))
            copy(outputs["maskmem_features"][i], track.maskmem.ring_block(item.frame))

    def _inputs(self, items: Sequence[BatchFrame], counts: Sequence[int], due: Sequence[int]) -> FrameInputs:
        """Copy the inputs of the frames side by side, to the same addresses on every frame."""
        for name, tensor in self._decoder_inputs.items():
            self._scratch.add("joint_" + name, tensor)  # allocated by the first frames that are decoded together
        pictures = self._joined("picture_index", [self._numbers[i][:n] for i, n in enumerate(counts)])
        sparse = [track.features["sparse"][0] for item in items for track in item.batch.tracks]
        maps = [item.clip["high_res_0"][item.offset] for item in items]
        return self.single.gather_maps(
            items,
            due,
            static=True,
            high_res_0=self._scratch.gather("joint_high_res_0", maps, True),
            sparse=list(self._scratch.gather("joint_sparse", sparse, True)),
            sparse_count=self._joined("sparse_count", [item.batch.sparse_count for item in items]),
            picture_index=pictures,
            picture_index_due=self._joined("picture_index_due", [pictures[i : i + 1] for i in due]),
            **(self._memory_inputs(items) if items[0].has_memory else {}),
        )

    def _memory_inputs(self, items: Sequence[BatchFrame]) -> dict[str, Array]:
        ages = [self.single.slot_ages(item.batch, item.frame) for item in items]
        index = self._joined("maskmem_tpos_index", [age.reshape(-1) for age in ages]).reshape(-1, ages[0].shape[1])
        tracks = [track for item in items for track in item.batch.tracks]
        return {
            "memory": self.single.filled("memory", [track.maskmem for track in tracks], static=True),
            "obj_ptrs": self.single.filled("obj_ptrs", [track.obj_ptrs for track in tracks], static=True),
            "maskmem_tpos_index": index,
        }

    def _joined(self, name: str, parts: Sequence[Array]) -> Array:
        """Copy one-dimensional arrays of integers behind each other."""
        out, start = self._int_buffers[name], 0
        for part in parts:
            self._device.copy(part, out[start : start + part.shape[0]])
            start += part.shape[0]
        return out[:start]


class FrameWork(Work):
    """One frame of a batch of tracks, decoded alone or with those of other sessions."""

    def __init__(self, runner: JointRunner, item: BatchFrame) -> None:
        super().__init__(runner.lock, runner.key(item), len(item.batch.tracks), runner.max_tracks)
        self._runner, self._item = runner, item
        self._reading: Read | None = None

    def _run(self, others: Sequence[FrameWork]) -> None:
        if others or self._runner.takes(self._item):
            self._runner.start([self._item, *(other._item for other in others)])
        else:
            self._runner.single.start(self._item)

    def start_ahead(self) -> None:
        """Run the work before the frame in front of it is read; `settle` has to follow when it is.

        Whether the conditional memory is due is guessed: that of the frame in front did not switch.
        """
        self._runner.single.start(self._item, remembers=False)
        self._reading, self.is_done = self._runner.single.begin_read(self._item), True

    def settle(self) -> None:
        """Write what the frame remembers; run it again first if another track is due than was guessed."""
        if (due := self._item.batch.cme_due(self._item.frame)) != self._item.due:
            self._item = replace(self._item, due=due)
            self.start_ahead()
        self._runner.single.remember(self._item)

    def begin_read(self) -> None:
        """Run the work if it is not done, and enqueue the copy of its outcome to the host."""
        self.run_alone()
        self._reading = self._reading or self._runner.single.begin_read(self._item)

    def read(self) -> dict[str, np.ndarray]:
        """Return the outcome; host views, valid until a later frame is read."""
        self.begin_read()
        assert self._reading is not None
        return self._runner.single.finish(self._item, self._reading)
