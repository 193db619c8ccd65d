"""Prompts of SAM 3's detector: words and exemplars of a concept, and what a batch of them gives the stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...device.base import Array
from ...prompts import Concept


@dataclass(frozen=True, slots=True)
class ConceptPrompt:
    """A concept as the detector takes it.

    tokens  (L,) int64 token ids, padded
    boxes   (K,4) float32 exemplars cx, cy, w, h in [0,1]; `labels` (K,) int64, 1 positive, 0 negative
    geometry  (K+1,D) encoded exemplars of another image; None: those of the image itself
    """

    tokens: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    geometry: Array | None = None

    def with_exemplars(self, concept: Concept, size: tuple[int, int]) -> ConceptPrompt:
        """Return the prompt with the exemplars of a concept on an image of `size` (H, W). Raises PromptError."""
        return replace(self, boxes=concept.scaled_boxes(*size), labels=np.asarray(concept.labels, np.int64))


def box_inputs(prompts: Sequence[ConceptPrompt], boxes: int) -> dict[str, np.ndarray]:
    """Return the inputs of the geometry encoder for up to `boxes` exemplars of each concept; without any, those of one
    CLS token for all concepts."""
    count = len(prompts) if boxes else 1
    coordinates = np.zeros((count, boxes + 1, 4), np.float32)
    labels, mask = np.zeros((count, boxes + 1), np.int64), np.zeros((count, boxes + 1), bool)
    mask[:, -1] = True
    for i, prompt in enumerate(prompts[:count]):
        n = len(prompt.boxes)
        coordinates[i, :n], labels[i, :n], mask[i, :n] = prompt.boxes, prompt.labels, True
    return {"boxes": coordinates, "box_labels": labels, "box_mask": mask, "box_map_index": np.zeros(count, np.int64)}


def prompt_mask(prompts: Sequence[ConceptPrompt], boxes: int, padding: int) -> np.ndarray:
    """Return which prompt tokens (P,T) are no padding: words, up to `boxes` exemplars, CLS."""
    words = len(prompts[0].tokens)
    mask = np.ones((len(prompts), words + boxes + 1), bool)
    for row, prompt in zip(mask, prompts, strict=True):
        row[:words] = prompt.tokens != padding
        row[words + len(prompt.boxes) : words + boxes] = False
    return mask
