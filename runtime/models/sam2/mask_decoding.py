"""Mask decoding of SAM 2: requests on one frame to masks, scores and object pointers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...device.base import Array, Device
from ...device.inputs import InputBlock
from ...device.scratch import GrowableBuffers, OutputBlock
from ...tracking.object_memory import DecodedMemory
from ...tracking.requests import DecodeRequest, DecoderOutput, ImageFeatures
from .memory_attention import MemoryAttention
from .memory_encoding import MemoryEncoding
from .prompt_encoding import PromptEncoding

if TYPE_CHECKING:
    from ...backends.base import Stage

Inputs = Mapping[str, Array]


class MaskDecoding:
    """Runs memory attention, prompt encoding and the stage `prompt_decoder` on batches of requests.

    A batch is one wait. What all batches take from the host is one upload, or none if it came with the frame.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        device: Device,
        scratch: GrowableBuffers,
        batch: int,
        inputs: InputBlock,
        prompts: PromptEncoding,
        memory: MemoryEncoding,
    ) -> None:
        self._stage, self._scratch, self._batch = stages["prompt_decoder"], scratch, batch
        self._inputs, self._prompts, self._memory = inputs, prompts, memory
        self._attention = MemoryAttention(stages["memory_attention"], device, scratch, batch)
        self._readback = OutputBlock(device)
        spec, encoder = self._stage.spec, stages["prompt_memory_encoder"].spec
        _, tokens, channels = encoder.output("maskmem_features").shape
        self._tokens = int(tokens), int(spec.output("obj_ptr").shape[1]) // int(channels)
        """Memory tokens of a map and of a pointer."""
        # a host has no copy to save, and there the order of the stages stays that of the reference
        self._encodes_memory = device.name != "cpu" and all(
            spec.output(mine).dtype == tensor.dtype
            for tensor in encoder.inputs
            for mine in ("low_res_logits" if tensor.name == "mask_logits" else tensor.name,)
            if mine in ("low_res_logits", "score")
        )

    def allocate(self, sizes: Mapping[str, int]) -> None:
        """Allocate scratch for calls of these sizes."""
        self._attention.allocate(sizes)
        self._inputs.reserve(self._attention.num_input_bytes(sizes))
        self._outputs(sizes["objects"], False)

    def batches(self, requests: Sequence[DecodeRequest]) -> list[list[int]]:
        """Return the requests of each batch, by their places."""
        # equal memory shapes side by side: each run of them shares calls of memory attention
        order = sorted(range(len(requests)), key=lambda i: requests[i].memory_shape)
        return [order[start : start + self._batch] for start in range(0, len(order), self._batch)]

    def host_inputs(self, requests: Sequence[DecodeRequest]) -> dict[str, np.ndarray]:
        """Return what `decode` needs on the device, by number of the batch and name."""
        return {
            f"{number}.{name}": array
            for number, batch in enumerate(self.batches(requests))
            for name, array in self._batch_inputs([requests[i] for i in batch]).items()
        }

    def _batch_inputs(self, requests: list[DecodeRequest]) -> dict[str, np.ndarray]:
        return {
            **self._attention.host_inputs(requests),
            **self._prompts.host_inputs(requests),
            **self._memory.host_inputs(len(requests)),
            "map_index": np.array([request.picture for request in requests], np.int64),
            "multimask": np.array([request.multimask for request in requests]),
        }

    def decode(
        self, features: ImageFeatures, requests: Sequence[DecodeRequest], all_logits: bool, remember: bool
    ) -> list[DecoderOutput]:
        """See `Sam2.decode`."""
        inputs = self._inputs.take(requests, lambda: self.host_inputs(requests)) if requests else {}
        outputs: dict[int, DecoderOutput] = {}
        for number, batch in enumerate(self.batches(requests)):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): a for name, a in inputs.items() if name.startswith(prefix)}
            decoded = self._decode_batch(features, [requests[i] for i in batch], own, all_logits, remember)
            outputs.update(zip(batch, decoded, strict=True))
        return [outputs[i] for i in range(len(requests))]

    def _decode_batch(
        self, features: ImageFeatures, requests: list[DecodeRequest], inputs: Inputs, all_logits: bool, remember: bool
    ) -> Iterator[DecoderOutput]:
        outputs = self._outputs(len(requests), all_logits)
        self._stage.run(
            conditioned=self._attention.condition(features, requests, inputs),
            **self._prompts.encode(requests, inputs),
            high_res_0=features.high_res_0,
            picture_index=inputs["map_index"],
            high_res_1=features.high_res_1,
            map_index=inputs["map_index"],
            multimask=inputs["multimask"],
            **outputs,
        )
        memories: Sequence[DecodedMemory | None] = [None] * len(requests)
        if remember and self._encodes_memory and all(request.is_tracking_only for request in requests):
            memories = self._memory.encode_decoded(features, outputs, inputs)
        host = self._readback.read()
        for i, (request, memory) in enumerate(zip(requests, memories, strict=True)):
            yield self._output(host, i, request, memory)

    def _outputs(self, objects: int, all_logits: bool) -> dict[str, Array]:
        """Return the outputs of the stage, side by side if they are read."""
        sizes, outputs = {"objects": objects}, self._stage.spec.outputs
        unread = [] if all_logits else [self._stage.spec.output("all_logits")]
        scratch = {t.name: self._scratch.take(t.name, t.resolve(sizes), t.dtype) for t in unread}
        return {**self._readback.reserve([t for t in outputs if t not in unread], sizes), **scratch}

    def _output(
        self, host: Mapping[str, np.ndarray], i: int, request: DecodeRequest, memory: DecodedMemory | None
    ) -> DecoderOutput:
        maps, pointers = request.memory_shape
        return DecoderOutput(
            low_res_logits=np.array(host["low_res_logits"][i]),
            all_logits=np.array(host["all_logits"][i]) if "all_logits" in host else None,
            ious=np.array(host["ious"][i]),
            selected=int(host["selected"][i]),
            score=float(host["score"][i]),
            obj_ptr=np.array(host["obj_ptr"][i], np.float32),
            memory_tokens=(maps * self._tokens[0], pointers * self._tokens[1]),
            decoded_memory=memory,
        )
