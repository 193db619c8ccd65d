"""Mask decoding of SAM 2: requests on one frame to masks, scores and object pointers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...device.base import Array, Device
from ...device.inputs import InputBlock, numbered, of_number
from ...device.scratch import GrowableBuffers, OutputBlock
from ...imaging.gpu import DeviceMasks, MaskBits
from ...tracking.object_memory import DecodedMemory
from ...tracking.requests import DecodeRequest, DecoderOutput, ImageFeatures
from .memory_attention import MemoryAttention
from .memory_encoding import MemoryEncoding
from .prompt_encoding import PromptEncoding

if TYPE_CHECKING:
    from ...backends.base import Stage

Inputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Decoding:
    """Requests that are being decoded; `readback`: what the last batch is read from."""

    readback: OutputBlock | None
    _outputs: dict[int, DecoderOutput]
    _batch: Sequence[int]
    _last: Iterator[DecoderOutput]

    def finish(self) -> list[DecoderOutput]:
        """Wait, unless the outputs were read with others, and return those of all requests."""
        self._outputs.update(zip(self._batch, self._last, strict=True))
        return [self._outputs[i] for i in range(len(self._outputs))]


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
        return numbered(self._batch_inputs([requests[i] for i in batch]) for batch in self.batches(requests))

    def _batch_inputs(self, requests: list[DecodeRequest]) -> dict[str, np.ndarray]:
        return {
            **self._attention.host_inputs(requests),
            **self._prompts.host_inputs(requests),
            **self._memory.host_inputs(len(requests)),
            "map_index": np.array([request.picture for request in requests], np.int64),
            "multimask": np.array([request.multimask for request in requests]),
        }

    def start(
        self, features: ImageFeatures, requests: Sequence[DecodeRequest], all_logits: bool, remember: bool
    ) -> Decoding:
        """See `Sam2.start_decoding`."""
        inputs = self._inputs.take(requests, lambda: self.host_inputs(requests)) if requests else {}
        outputs: dict[int, DecoderOutput] = {}
        last: Iterator[DecoderOutput] = iter(())
        batches = self.batches(requests)
        for number, batch in enumerate(batches):
            own = of_number(inputs, number)
            last = self._decode_batch(features, [requests[i] for i in batch], own, all_logits, remember)
            if number < len(batches) - 1:  # the next batch is decoded into the same arrays
                outputs.update(zip(batch, last, strict=True))
        return Decoding(self._readback if requests else None, outputs, batches[-1] if batches else [], last)

    def _decode_batch(
        self, features: ImageFeatures, requests: list[DecodeRequest], inputs: Inputs, all_logits: bool, remember: bool
    ) -> Iterator[DecoderOutput]:
        """Enqueue a batch; return its outputs, which wait when they are taken."""
        outputs = self._outputs(len(requests), all_logits, masks := _masks_of(requests))
        made = {name: outputs.pop(name) for name in ("stats", "packed")} if masks else {}
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
        if masks is not None:
            logits = outputs["all_logits"] if all_logits else outputs["low_res_logits"]
            masks.enqueue(logits.reshape(-1, *logits.shape[-2:]), **made)
        memories: Sequence[DecodedMemory | None] = [None] * len(requests)
        if remember and self._encodes_memory and all(request.is_tracking_only for request in requests):
            memories = self._memory.encode_decoded(features, outputs, inputs)
        return self._read(requests, memories)

    def _read(
        self, requests: Sequence[DecodeRequest], memories: Sequence[DecodedMemory | None]
    ) -> Iterator[DecoderOutput]:
        host = self._readback.read()
        for i, (request, memory) in enumerate(zip(requests, memories, strict=True)):
            yield self._output(host, i, request, memory)

    def _outputs(self, objects: int, all_logits: bool, masks: DeviceMasks | None = None) -> dict[str, Array]:
        """Return the outputs of the stage, side by side if they are read, and behind them those of `masks`."""
        sizes, outputs = {"objects": objects}, self._stage.spec.outputs
        unread = [] if all_logits else [self._stage.spec.output("all_logits")]
        scratch = {t.name: self._scratch.take(t.name, t.resolve(sizes), t.dtype) for t in unread}
        made = masks.fields(4 * objects if all_logits else objects) if masks else []
        return {**self._readback.reserve([t for t in (*outputs, *made) if t not in unread], sizes), **scratch}

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
            mask_bits=_mask_bits(host, i) if "packed" in host else None,
        )


def _mask_bits(host: Mapping[str, np.ndarray], i: int) -> MaskBits:
    """Return a copy of what the device made for request `i`."""
    each = len(host["packed"]) // len(host["score"])
    own = slice(i * each, (i + 1) * each)
    return MaskBits(np.array(host["packed"][own]), np.array(host["stats"][own]))


def _masks_of(requests: Sequence[DecodeRequest]) -> DeviceMasks | None:
    """Return what makes the masks of a batch, if all of it have one size."""
    masks = {request.masks for request in requests}
    return masks.pop() if len(masks) == 1 else None
