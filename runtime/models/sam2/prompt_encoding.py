"""Prompt encoding of SAM 2: points and mask logits of a batch of objects become tokens and a dense map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...device.base import Array, Device
from ...device.scratch import GrowableBuffers, OutputBlock
from ...tracking.prompt_inputs import NO_POINTS
from ...tracking.requests import DecodeRequest

if TYPE_CHECKING:
    from ...backends.base import Stage

MAX_MASKS = 4
"""Most masks in one call: they are uploaded at the size of the network's input, 5 MB each in SAM 3."""


class PromptEncoding:
    """Runs the stages `prompt_encoder` and `mask_prompt`."""

    def __init__(
        self, prompt_encoder: Stage, mask_prompt: Stage, device: Device, scratch: GrowableBuffers, low_res_side: int
    ) -> None:
        self._prompt_encoder, self._mask_prompt = prompt_encoder, mask_prompt
        self._device, self._scratch, self._side = device, scratch, low_res_side
        self._readback = OutputBlock(device)
        self._empty: dict[str, Array] = {}
        self._num_empty = 0
        self._batch = 1

    def allocate(self, sizes: Mapping[str, int]) -> None:
        """Allocate scratch for calls of these sizes, and the encoded empty prompt."""
        self._outputs(self._prompt_encoder, sizes)
        self._batch = sizes["objects"]
        for tensor in self._prompt_encoder.spec.outputs:
            shape = tensor.resolve({**sizes, "prompt_tokens": len(NO_POINTS.labels)})
            self._empty[tensor.name] = self._device.empty(shape, tensor.dtype)

    def host_inputs(self, requests: Sequence[DecodeRequest]) -> dict[str, np.ndarray]:
        """Return what `encode` needs on the device."""
        n = len(requests)
        counts = np.array([0 if r.points is None else len(r.points.labels) for r in requests], np.int64)
        if all(request.is_tracking_only for request in requests):
            return {"sparse_count": counts}
        longest = max(1, int(counts.max()))
        coords, labels = np.zeros((n, longest, 2), np.float32), np.full((n, longest), -1, np.int64)
        logits = np.zeros((n, self._side, self._side), np.float32)
        for i, request in enumerate(requests):
            if request.points is not None:
                coords[i, : counts[i]], labels[i, : counts[i]] = request.points.coords, request.points.labels
            if request.mask_logits is not None:
                logits[i] = request.mask_logits
        has_mask = np.array([request.mask_logits is not None for request in requests])
        return {
            "sparse_count": counts,
            "points": coords,
            "labels": labels,
            "prompt_logits": logits,
            "has_mask": has_mask,
        }

    def encode(self, requests: Sequence[DecodeRequest], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return `sparse`, `sparse_count` and `dense` of the decoder; `inputs`: see `host_inputs`."""
        n, counts = len(requests), {"sparse_count": inputs["sparse_count"]}
        if all(request.is_tracking_only for request in requests):
            self._fill_empty(n)
            return {name: array[:n] for name, array in self._empty.items()} | counts
        prompts = {t.name: inputs[t.name] for t in self._prompt_encoder.spec.inputs}
        outputs = self._outputs(self._prompt_encoder, {"objects": n, "prompt_tokens": prompts["labels"].shape[1]})
        self._prompt_encoder.run(**prompts, **outputs)
        return {**outputs, **counts}

    def encode_masks(self, masks: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Return of each mask (P,P) `prompt_logits`, its dense prompt (s,s), and where there is one `mask_logits`, the
        low-res logits (s,s) of the mask itself. One wait for each batch; on a CPU a mask is a batch."""
        encoded: list[dict[str, np.ndarray]] = []
        step = 1 if self._device.name == "cpu" else min(self._batch, MAX_MASKS)
        for start in range(0, len(masks), step):
            some = np.stack(masks[start : start + step]).astype(np.float32)
            outputs = self._readback.reserve(self._mask_prompt.spec.outputs, {"objects": len(some)})
            self._mask_prompt.run(mask=some, **outputs)
            host = self._readback.read()
            encoded += [{name: np.array(array[i]) for name, array in host.items()} for i in range(len(some))]
        return encoded

    def _outputs(self, stage: Stage, sizes: Mapping[str, int]) -> dict[str, Array]:
        return {t.name: self._scratch.take(t.name, t.resolve(sizes), t.dtype) for t in stage.spec.outputs}

    def _fill_empty(self, n: int) -> None:
        """Encode the empty prompt of tracked frames, once for as many objects as there ever were together."""
        if n <= self._num_empty:
            return
        if not self._num_empty:
            self._prompt_encoder.run(
                points=NO_POINTS.coords[None],
                labels=NO_POINTS.labels[None],
                has_mask=np.zeros(1, bool),
                prompt_logits=np.zeros((1, self._side, self._side), np.float32),
                **{name: array[:1] for name, array in self._empty.items()},
            )
        for i in range(max(1, self._num_empty), n):
            for array in self._empty.values():
                self._device.copy(array[0], array[i])
        self._num_empty = n
