"""Frame decoder of SAMWISE: memory attention, mask decoder, conditional memory encoder (CME), memory encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...device.base import Array, Device
from ...device.scratch import ReadbackBuffer, ScratchBuffers
from .state import FrameInputs

if TYPE_CHECKING:
    from ...backends.base import Stage


class FrameDecoder:
    """Decodes one frame for up to `max_tracks` tracks and encodes its memory.

    `decode` only enqueues, on the arrays that it is given and on scratch, so that it can be captured as a CUDA graph.
    """

    STAGES = ("memory_attention", "mask_decoder", "memory_encoder")
    OPTIONAL_STAGES = ("conditional_memory",)

    def __init__(
        self, stages: Mapping[str, Stage], device: Device, scratch: ScratchBuffers, max_tracks: int, motion: bool
    ) -> None:
        self._stages = {name: stages[name] for name in (*self.STAGES, *self.OPTIONAL_STAGES) if name in stages}
        self._scratch = scratch
        self._index = device.constant(np.arange(max_tracks, dtype=np.int64))
        self._zeros = device.constant(np.zeros(max_tracks, np.int64))
        decoder = self._stages["mask_decoder"].spec
        sparse = decoder.input("sparse")
        scratch.add("batch_sparse", sparse)
        if "conditional_memory" in self._stages:
            scratch.add("due_high_res_1", decoder.input("high_res_1"))
            for tensor in decoder.outputs:
                scratch.add("memoryless_" + tensor.name, tensor)
                scratch.add("due_" + tensor.name, tensor)
        # the reference decodes without the verb where it decodes without memory
        _, tokens, _ = sparse.resolve({"objects": max_tracks})
        self._count_without_verb = device.constant(np.full(max_tracks, tokens - motion, np.int64))

    def outputs(self, readback: ReadbackBuffer, num_tracks: int) -> dict[str, Array]:
        """Return the arrays that `decode` fills, by name; what is not read back is scratch."""
        return self.scratch_outputs(num_tracks) | readback.arrays

    def scratch_outputs(self, num_tracks: int) -> dict[str, Array]:
        """Return arrays that `decode` fills, all of them scratch."""
        stages = ("mask_decoder", "memory_encoder", *self.OPTIONAL_STAGES)
        specs = [self._stages[name].spec for name in stages if name in self._stages]
        return {t.name: self._scratch.view(t.name, num_tracks) for spec in specs for t in spec.outputs}

    def decode(self, inputs: FrameInputs, outputs: Mapping[str, Array], slots: Sequence[Array] | None) -> None:
        """Run all stages. The memory of each track goes to its slot, or to `outputs` if `slots` is None."""
        conditioned = inputs.embedding_no_memory if inputs.memory is None else self._memory_attention(inputs)
        self._mask_decoder(inputs, conditioned, outputs)
        replaced = self._conditional_memory(inputs, outputs) if inputs.cme_due else None
        self._memory_encoder(inputs, outputs, replaced, slots)

    def _memory_attention(self, inputs: FrameInputs) -> Array:
        n = len(inputs.sparse)
        conditioned = self._scratch.view("conditioned", n)
        self._stages["memory_attention"].run(
            embedding=inputs.embedding,
            map_index=self._index[:n],
            memory=inputs.memory,
            maskmem_tpos_index=inputs.maskmem_tpos_index,
            obj_ptrs=inputs.obj_ptrs,
            conditioned=conditioned,
        )
        return conditioned

    def _mask_decoder(self, inputs: FrameInputs, conditioned: Array, outputs: Mapping[str, Array]) -> None:
        n, stage = len(inputs.sparse), self._stages["mask_decoder"]
        stage.run(
            conditioned=conditioned,
            sparse=self._scratch.gather("batch_sparse", inputs.sparse),
            sparse_count=inputs.sparse_count,
            high_res_0=inputs.high_res_0,
            picture_index=inputs.picture_index,
            high_res_1=inputs.high_res_1,
            map_index=self._index[:n],
            **{t.name: outputs[t.name] for t in stage.spec.outputs},
        )

    def _conditional_memory(self, inputs: FrameInputs, outputs: Mapping[str, Array]) -> Array:
        """Decode the due tracks again without memory and choose the mask that each remembers: (due, I, I) logits."""
        view, due, n = self._scratch.view, inputs.cme_due, len(inputs.cme_due)

        def rows_due(name: str, array: Array) -> Array:
            all_due = n == len(inputs.sparse)
            return array if all_due else self._scratch.gather("due_" + name, [array[i] for i in due])

        memoryless = {t.name: view("memoryless_" + t.name, n) for t in self._stages["mask_decoder"].spec.outputs}
        inputs_due = replace(
            inputs,
            sparse=[inputs.sparse[i] for i in due],
            sparse_count=self._count_without_verb[:n],
            picture_index=inputs.picture_index_due,
            high_res_1=rows_due("high_res_1", inputs.high_res_1),
        )
        self._mask_decoder(inputs_due, inputs.embedding_no_memory, memoryless)
        chosen = {name: view(name, n) for name in ("remembered_logits", "decision")}
        self._stages["conditional_memory"].run(
            obj_ptr=rows_due("obj_ptr", outputs["obj_ptr"]),
            early_token=memoryless["early_token"],
            low_res_logits=rows_due("low_res_logits", outputs["low_res_logits"]),
            memoryless_logits=memoryless["low_res_logits"],
            switched=outputs["switched"][:n],
            **chosen,
        )
        return chosen["remembered_logits"]

    def _memory_encoder(
        self, inputs: FrameInputs, outputs: Mapping[str, Array], replaced: Array | None, slots: Sequence[Array] | None
    ) -> None:
        """Encode the mask of each track, in one call per size of masks if they are neighbours and go to one array."""
        masks, due, n = outputs["low_res_logits"], list(inputs.cme_due), len(inputs.sparse)
        out = outputs["maskmem_features"] if slots is None else slots
        if slots is None and due == list(range(len(due))):
            parts = [(slice(0, len(due)), replaced), (slice(len(due), n), masks[len(due) : n])]
        else:
            parts = [(slice(i, i + 1), masks[i : i + 1]) for i in range(n)]
            for at, i in enumerate(due):
                parts[i] = (slice(i, i + 1), None if replaced is None else replaced[at : at + 1])
        for rows, logits in parts:
            if (count := len(range(n)[rows])) and logits is not None:
                self._stages["memory_encoder"].run(
                    embedding=inputs.embedding[rows],
                    map_index=self._index[:count],
                    mask_logits=logits,
                    maskmem_features=out[rows] if slots is None else out[rows.start][None],
                )
