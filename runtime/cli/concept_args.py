"""Concepts from the command line: words, exemplar boxes, or both.

An exemplar is `left,top,right,bottom`, then `,-` where it shows what the concept is not, then `@frame` (default 0) or
`@name:picture`. It belongs to the `--concept` before it; exemplars before the first one are a concept of their own. A
concept of exemplars alone starts on the frame of the first. On each later frame that has exemplars, these replace the
earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import PromptError
from ..media.frame_names import PictureNames
from ..prompts import Box, Concept, Text
from .frame_args import check_frame, describe_unused, resolve_frames, split_frame

CONCEPT_OPTIONS = ("--concept", "--exemplar")


@dataclass(slots=True)
class ConceptPrompt:
    """Words of one concept, None where there are none, and its exemplars (box, label) by frame."""

    words: str | None
    exemplars: dict[int, list[tuple[Box, int]]] = field(default_factory=dict)
    named: dict[str, list[tuple[Box, int]]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return "exemplar" if self.words is None else Text(self.words).label

    def add(self, frame: int | str, box: Box, label: int) -> None:
        """Add an exemplar on the frame of a number or name."""
        boxes = self.named.setdefault(frame, []) if isinstance(frame, str) else self.exemplars.setdefault(frame, [])
        boxes.append((box, label))

    def on_frame(self, frame: int) -> Concept | None:
        """Return the concept with its exemplars on one frame; None where it has neither words nor exemplars."""
        exemplars = self.exemplars.get(frame, [])
        if self.words is None and not exemplars:
            return None
        boxes, labels = [np.asarray(box.xyxy) for box, _ in exemplars], [label for _, label in exemplars]
        if self.words is None and not any(labels):
            raise PromptError(
                f"--exemplar on frame {frame}: only negative ones; add one around an instance, or --concept"
            )
        return Concept(self.words, boxes=boxes, labels=labels)


@dataclass(slots=True)
class ConceptSet:
    """Concepts of a run, by the frame that they start on; their numbers count from 1. `notes`: as in `PromptSet`."""

    concepts: list[ConceptPrompt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def labels(self) -> dict[int, str]:
        """Number of each concept -> label."""
        return {number: concept.label for number, concept in enumerate(self.concepts, 1)}

    def resolve_names(self, names: PictureNames | None) -> None:
        """Find the frames of exemplars on pictures by name; see `PromptSet.resolve_names`. Raises PromptError."""
        numbers = {frame for concept in self.concepts for frame in concept.exemplars}
        named = {name: None for concept in self.concepts for name in concept.named}
        found = resolve_frames(numbers, named, names, self.notes)
        for concept in self.concepts:
            for name, exemplars in concept.named.items():
                for box, label in exemplars:
                    concept.add(found[name], box, label)
            concept.named.clear()
        self.concepts.sort(key=lambda concept: 0 if concept.words is not None else min(concept.exemplars))

    def check(self, size: tuple[int, int], stride: int, max_count: int | None) -> None:
        """Raise PromptError for an exemplar outside the image (height, width) or on a frame that is not processed."""
        for concept in self.concepts:
            for frame in sorted(concept.exemplars):
                check_frame(frame, stride, max_count)
                try:
                    for box, _ in concept.exemplars[frame]:
                        box.scaled(*size)
                except PromptError as error:
                    raise PromptError(f"--exemplar of {concept.label!r}, frame {frame}: {error}") from None
                concept.on_frame(frame)

    def unused(self, processed: Sequence[int]) -> list[str]:
        """Describe the exemplars on frames other than those that were processed, by their numbers in the source."""
        late: dict[int, list[str]] = {}
        for concept in self.concepts:
            for frame, exemplars in concept.exemplars.items():
                count = f"{len(exemplars)} exemplar{'s' * (len(exemplars) > 1)}"
                late.setdefault(frame, []).append(count if concept.words is None else f"{count} of {concept.label!r}")
        return describe_unused({frame: ", ".join(names) for frame, names in late.items()}, processed)

    def on_index(self, index: int, stride: int) -> dict[int, Concept]:
        """Return the concepts with their exemplars on one processed frame alone, by number."""
        found = {number: concept.on_frame(index * stride) for number, concept in enumerate(self.concepts, 1)}
        return {number: concept for number, concept in found.items() if concept is not None}

    def changes(self, stride: int) -> dict[int, dict[int, Concept]]:
        """Return the concepts that start or change on a frame, by its number among those processed."""
        changes: dict[int, dict[int, Concept]] = {}
        for number, prompt in enumerate(self.concepts, 1):
            for frame in sorted({*prompt.exemplars, *([] if prompt.words is None else [0])}):
                concept = prompt.on_frame(frame)
                assert concept is not None
                changes.setdefault(frame // stride, {})[number] = concept
        return changes


def parse_concepts(prompt_args: Sequence[tuple[str, str]]) -> ConceptSet:
    """Parse pairs of option and value, in order. Raises PromptError."""
    concepts = ConceptSet()
    for option, value in prompt_args:
        if option == "--concept":
            if not value.strip():
                raise PromptError('--concept has no words; name a kind of object, like "yellow bus", or omit it')
            Text(value)  # raises for what is no text
            concepts.concepts.append(ConceptPrompt(value))
            continue
        if not concepts.concepts:
            concepts.concepts.append(ConceptPrompt(None))
        text, frame = split_frame(option, value)
        concepts.concepts[-1].add(frame, *_parse_exemplar(text))
    return concepts


def _parse_exemplar(text: str) -> tuple[Box, int]:
    """Return the box, and 1 or 0."""
    *numbers, sign = text.split(",") if text.count(",") == 4 else (*text.split(","), "+")
    label = {"+": 1, "1": 1, "-": 0, "0": 0}.get(sign.strip())
    try:
        corners = [float(number) for number in numbers]
    except ValueError:
        corners = []
    if len(corners) != 4 or label is None:
        example = "like 350,150,600,330 or 0,0,9,9,-@12"
        raise PromptError(
            f"--exemplar {text!r}: give left,top,right,bottom in pixels, then ,- for what it is not, {example}"
        )
    return Box(corners), label
