"""Concepts: all objects that words or exemplars describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PromptError
from .numbers import check_unmasked
from .text import Text
from .visual import Box


@dataclass(frozen=True, slots=True)
class Concept:
    """All objects that `text` (or `tokens` of the bundle's vocabulary) names, that exemplars show, or both.

    boxes   (K,4) exemplars as left, top, right, bottom in source pixels (0..1 if `normalized`)
    labels  (K,) 1 for an instance, 0 for what is none; None: all are instances
    Raises PromptError without words and without an instance.
    """

    text: str | None = None
    tokens: Sequence[int] | None = field(default=None, kw_only=True)
    boxes: npt.ArrayLike | None = field(default=None, kw_only=True)
    labels: npt.ArrayLike | None = field(default=None, kw_only=True)
    normalized: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.text is not None or self.tokens is not None:
            words = Text(self.text, tokens=self.tokens)
            object.__setattr__(self, "tokens", words.tokens)
        check_unmasked(self.boxes, "boxes")
        check_unmasked(self.labels, "labels")
        boxes = np.asarray([] if self.boxes is None else self.boxes)
        boxes = boxes.reshape(-1, 4) if boxes.ndim == 1 and boxes.size in (0, 4) else boxes
        if boxes.ndim != 2:
            raise PromptError(f"boxes of a concept must be (K,4), not {boxes.shape}")
        corners = tuple(Box(row, self.normalized).xyxy for row in boxes)
        labels = np.ones(len(corners)) if self.labels is None else np.asarray(self.labels).reshape(-1)
        if len(labels) != len(corners) or not np.isin(labels, (0, 1)).all():
            raise PromptError(f"labels must be one 1 or 0 for each of the {len(corners)} boxes, not {labels.tolist()}")
        if self.text is None and self.tokens is None and not labels.any():
            raise PromptError("a concept needs words, or a box around an instance: Concept('yellow bus')")
        object.__setattr__(self, "boxes", corners)
        object.__setattr__(self, "labels", tuple(int(label) for label in labels))

    @classmethod
    def of(cls, prompt: Concept | Text) -> Concept:
        """Return a concept; a sentence is one. Raises PromptError for anything else."""
        if isinstance(prompt, Text):
            return cls(prompt.text, tokens=prompt.tokens)
        if not isinstance(prompt, Concept):
            raise PromptError(f"a concept must be runtime.Concept or runtime.Text, not {type(prompt).__name__}")
        return prompt

    @property
    def words(self) -> Text | None:
        """The words alone; None where there are only exemplars."""
        if self.text is None and self.tokens is None:
            return None
        return Text(self.text, tokens=None if self.text is not None else self.tokens)

    @property
    def label(self) -> str:
        """Text to show beside the masks."""
        return "exemplar" if self.words is None else self.words.label

    def scaled_boxes(self, height: int, width: int) -> np.ndarray:
        """Return the exemplars as cx, cy, w, h in 0..1, float32 (K,4). Raises PromptError outside the image."""
        corners = [Box(row, self.normalized).scaled(height, width) for row in np.asarray(self.boxes).reshape(-1, 4)]
        x0, y0, x1, y1 = (np.reshape(corners, (-1, 4)) / np.array([width, height] * 2)).T
        return np.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), 1).astype(np.float32)


def check_concepts(prompts: Any) -> list[Concept]:
    """Return the prompts as concepts. Raises PromptError unless they are a list of at least one Concept or Text."""
    if not isinstance(prompts, (Sequence, np.ndarray)) or isinstance(prompts, (str, bytes)) or not len(prompts):
        raise PromptError("concepts must be a list of runtime.Concept, e.g. [runtime.Concept('yellow bus')]")
    return [Concept.of(prompt) for prompt in prompts]
