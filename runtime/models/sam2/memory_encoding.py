"""Memory encoding of SAM 2: masks of objects on a frame become the features that later frames attend to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...device.base import Array, Device
from ...device.scratch import GrowableBuffers
from ...tracking.object_memory import Block, DecodedMemory
from ...tracking.requests import ImageFeatures

if TYPE_CHECKING:
    from ...backends.base import Stage


class MemoryEncoding:
    """Runs the stage `prompt_memory_encoder`."""

    def __init__(self, stage: Stage, device: Device, scratch: GrowableBuffers, batch: int) -> None:
        self._stage, self._device, self._scratch, self._batch = stage, device, scratch, batch
        self._features = stage.spec.output("maskmem_features")
        self._optional = {t.name for t in stage.spec.inputs} & {"binarize", "score", "direct"}
        self._num_decoded = 0
        """Batches whose masks were encoded as they were decoded; the features of the latest one are there."""

    def allocate(self) -> None:
        """Allocate scratch for calls of the largest batch."""
        self._out("maskmem_features", self._batch)

    def _out(self, name: str, objects: int) -> Array:
        return self._scratch.take(name, self._features.resolve({"objects": objects}), self._features.dtype)

    def encode(
        self,
        features: ImageFeatures,
        logits: Sequence[np.ndarray],
        binarize: Sequence[bool],
        scores: Sequence[float],
        blocks: Sequence[Block],
        direct: bool,
        pictures: Sequence[int] | None,
    ) -> None:
        """See `Sam2.encode_memory`."""
        index = np.zeros(len(blocks), np.int64) if pictures is None else np.array(pictures, np.int64)
        for start in range(0, len(blocks), self._batch):
            part = slice(start, start + self._batch)
            n = len(blocks[part])
            optional = {
                "binarize": np.array(binarize[part], bool),
                "score": np.array(scores[part], np.float32),
                "direct": np.full(n, direct),
            }
            # one object is written in place; several, and what is recorded, are copied to their blocks
            in_place = n == 1 and not self._device.records_stages
            out = blocks[start].array[None] if in_place else self._out("maskmem_features", n)
            self._stage.run(
                embedding=features.embedding,
                map_index=index[part],
                mask_logits=np.stack(logits[part]).astype(np.float32, copy=False),
                maskmem_features=out,
                **{name: optional[name] for name in self._optional},
            )
            if not in_place:
                for features_nm, block in zip(out, blocks[part], strict=True):
                    self._device.copy(features_nm, block.array)

    # -- masks as they are decoded ---------------------------------------------------------------------------------

    def host_inputs(self, objects: int) -> dict[str, np.ndarray]:
        """Return what `encode_decoded` needs on the device."""
        return {name: np.zeros(objects, bool) for name in sorted(self._optional - {"score"})}

    def encode_decoded(
        self, features: ImageFeatures, decoded: Mapping[str, Array], inputs: Mapping[str, Array]
    ) -> list[DecodedMemory]:
        """Encode the masks of tracked objects as the decoder left them on the device, to be kept with `keep`.

        `inputs`: see `host_inputs`, with the `map_index` of the decoder.
        """
        masks, own = decoded["low_res_logits"], {name: inputs[name] for name in self._optional - {"score"}}
        score = {name: decoded[name] for name in self._optional & {"score"}}
        out = self._out("decoded_features", masks.shape[0])
        self._stage.run(
            embedding=features.embedding,
            map_index=inputs["map_index"],
            mask_logits=masks,
            maskmem_features=out,
            **own,
            **score,
        )
        self._num_decoded += 1
        return [DecodedMemory(row, self._num_decoded) for row in out]

    def keep(self, memory: DecodedMemory | None, block: Block) -> bool:
        """Copy features of `encode_decoded` to a block; False if there are none, or a later batch overwrote them."""
        if memory is None or memory.batch != self._num_decoded:
            return False
        self._device.copy(memory.features, block.array)
        return True
