"""Masks of SAM 3's detector: fine levels and mask head, for the queries that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ...device.base import Array, Device
from ...device.inputs import InputBlock, of_number
from ...device.scratch import GrowableBuffers, OutputBlock

if TYPE_CHECKING:
    from ...backends.base import Stage

MAP_INDEX = np.zeros(1, np.int64)
"""Row of the only map, for one concept."""


@dataclass(slots=True)
class ConceptFeatures:
    """Encoded image: the trunk's map (1,N,W), the detector's coarse level (1,N,D), and its fine levels, computed when
    a mask is."""

    trunk: Array
    level: Array
    fine_levels: Mapping[str, Array] | None = None
    fine_levels_valid: bool = False


class MaskHeads:
    """Runs the stages `fine_levels` and `mask_head`."""

    def __init__(self, stages: Mapping[str, Stage], device: Device, scratch: GrowableBuffers) -> None:
        self._fine, self._stage = stages["fine_levels"], stages["mask_head"]
        self._device, self._scratch = device, scratch
        self._queries, self._readback = InputBlock(device), OutputBlock(device)

    def masks(
        self,
        features: ConceptFeatures,
        encoded: Array,
        prompt: Mapping[str, Array],
        queries: np.ndarray,
        kept: Sequence[np.ndarray],
        semantic: bool,
    ) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
        """Compute the masks of kept queries, and the semantic masks where wanted: a call for each concept, one wait."""
        side = int(self._stage.spec.output("detected_logits").shape[2])
        chosen = {
            i: np.ascontiguousarray(queries[i, rows] if len(rows) else queries[i, :1])[None]
            for i, rows in enumerate(kept)
            if len(rows) or semantic
        }
        host = self._run(features, encoded, prompt, chosen, semantic) if chosen else {}
        none = np.zeros((0, side, side), np.float32)
        masks = [
            np.array(host[f"{i}.detected_logits"][0][: len(rows)]) if i in chosen else none
            for i, rows in enumerate(kept)
        ]
        return masks, [np.array(host[f"{i}.semantic_logits"][0]) if semantic else None for i in range(len(kept))]

    def _run(
        self,
        features: ConceptFeatures,
        encoded: Array,
        prompt: Mapping[str, Array],
        chosen: Mapping[int, np.ndarray],
        semantic: bool,
    ) -> dict[str, np.ndarray]:
        """Return the outputs that are read, by number of the concept and name."""
        sizes = {i: {"concepts": 1, "kept": rows.shape[1]} for i, rows in chosen.items()}
        unread = [] if semantic else [self._stage.spec.output("semantic_logits")]
        tensors = [t for t in self._stage.spec.outputs if t not in unread]
        outputs = self._readback.reserve(
            [replace(t, name=f"{i}.{t.name}", shape=t.resolve(sizes[i])) for i in chosen for t in tensors], {}
        )
        queries = self._queries.upload({f"{i}.kept_queries": rows for i, rows in chosen.items()} | {"map": MAP_INDEX})
        for i in chosen:
            self._stage.run(
                encoded=encoded[i : i + 1],
                **{name: array[i : i + 1] for name, array in prompt.items()},
                **self._fine_levels(features),
                map_index=queries["map"],
                **of_number(queries, i),
                **of_number(outputs, i),
                **{t.name: self._scratch.take(f"mask_head.{t.name}", t.resolve(sizes[i]), t.dtype) for t in unread},
            )
        return self._readback.read()

    def _fine_levels(self, features: ConceptFeatures) -> Mapping[str, Array]:
        if features.fine_levels is None:
            tensors = self._fine.spec.outputs
            features.fine_levels = {t.name: self._device.empty(t.resolve({"frames": 1}), t.dtype) for t in tensors}
        if not features.fine_levels_valid:
            self._fine.run(trunk=features.trunk, **features.fine_levels)
            features.fine_levels_valid = True
        return features.fine_levels
