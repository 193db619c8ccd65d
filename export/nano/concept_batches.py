"""Training batches of images with concepts, a pure function of their number."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from tokenizers import Tokenizer

from . import tokenizer as bpe
from .concepts import ConceptQuery, concept_clip, draw_concepts
from .dataset import SyntheticClip, SyntheticDataset
from .grammar import pick
from .loader import appearance_labels

FRAMES = 8
"""Length of the clips from which images are taken."""

MAX_OBJECTS = 8
MAX_EXEMPLARS = 2
MIN_PIXELS = 12
"""Visible pixels from which an object counts on an image."""

EXEMPLARS = 0.2
"""Part of the concepts that have exemplars."""

VISUAL = "visual"
"""Text of a concept that only exemplars describe, as in SAM 3."""


@dataclass(frozen=True, slots=True)
class ConceptBatchSpec:
    """Composition of a batch: `images` frames of each of `clips` clips, with `concepts` concepts for each image."""

    clips: int = 16
    images: int = 2
    concepts: int = 4
    max_tokens: int = 16


@dataclass(frozen=True, slots=True)
class ConceptBatch:
    """B images and P concepts. G objects at most, K exemplars at most.

    frames (B,S,S,3) uint8, instance_map (B,S,S) uint8, appearance (B,MAX_INSTANCES,3) int64; of each concept map_index
    (P) int64, its image; tokens (P,L) int64; exemplars (P,K+1,4) float32 cx, cy, w, h, labels (P,K+1) int64, visible
    (P,K+1) bool, the last of which is the CLS token; objects (P,G) int64 instance ids, 0 for none; boxes (P,G,4).
    """

    frames: np.ndarray
    instance_map: np.ndarray
    appearance: np.ndarray
    map_index: np.ndarray
    tokens: np.ndarray
    exemplars: np.ndarray
    labels: np.ndarray
    visible: np.ndarray
    objects: np.ndarray
    boxes: np.ndarray


def draw_batch(dataset: SyntheticDataset, tokenizer: Tokenizer, spec: ConceptBatchSpec, number: int) -> ConceptBatch:
    """Draw batch `number` of the training split."""
    rows: list[dict[str, np.ndarray]] = []
    images: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    texts: list[str] = []
    for i in range(spec.clips):
        seed = number * spec.clips + i
        rng = np.random.default_rng([11, seed])
        shown = np.sort(rng.choice(FRAMES, spec.images, replace=False)).tolist()
        clip = concept_clip(dataset, "train", seed, FRAMES, shown)
        for t in range(spec.images):
            boxes = instance_boxes(clip.instance_map[t], len(clip.scene.actors))
            for query in draw_concepts(rng, clip, spec.concepts):
                text, row = _labels(rng, clip, query, boxes)
                texts.append(text)
                rows.append(row | {"map_index": np.array(len(images))})
            images.append((clip.frames[t], clip.instance_map[t], appearance_labels(clip)))
    frames, maps, appearance = (np.stack(x) for x in zip(*images, strict=True))
    tokens = bpe.encode(tokenizer, texts, spec.max_tokens)[0][:, : spec.max_tokens]
    columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return ConceptBatch(frames, maps, appearance, tokens=tokens, **columns)


def instance_boxes(instance_map: np.ndarray, count: int) -> np.ndarray:
    """Return boxes cx, cy, w, h in [0,1] of `count` instances (N,4); zeros where fewer than `MIN_PIXELS` show."""
    side = instance_map.shape[0]
    boxes = np.zeros((count, 4), np.float32)
    for i in range(count):
        rows, columns = np.nonzero(instance_map == i + 1)
        if len(rows) >= MIN_PIXELS:
            low, high = np.array([columns.min(), rows.min()]), np.array([columns.max(), rows.max()]) + 1
            boxes[i] = [*(low + high) / (2 * side), *(high - low) / side]
    return boxes


def _labels(
    rng: Generator, clip: SyntheticClip, query: ConceptQuery, boxes: np.ndarray
) -> tuple[str, dict[str, np.ndarray]]:
    """Return the text of a concept and its labels on one image, some with exemplars."""
    exemplars = np.full((MAX_EXEMPLARS + 1, 4), 0.5, np.float32)
    labels, visible = np.zeros(MAX_EXEMPLARS + 1, np.int64), np.zeros(MAX_EXEMPLARS + 1, bool)
    visible[-1] = True
    seen = [i for i in query.actors if boxes[i, 2] > 0]
    if seen and rng.random() < EXEMPLARS:
        query, chosen, label = _with_exemplars(rng, clip, query, seen, boxes)
        for k, i in enumerate(chosen):
            jitter = 1 + rng.uniform(-0.06, 0.06, 4)
            exemplars[k], labels[k], visible[k] = boxes[i] * jitter, label, True
    objects, targets = np.zeros(MAX_OBJECTS, np.int64), np.zeros((MAX_OBJECTS, 4), np.float32)
    found = [i for i in query.actors if boxes[i, 2] > 0][:MAX_OBJECTS]
    objects[: len(found)], targets[: len(found)] = np.array(found, np.int64) + 1, boxes[found]
    row = {"exemplars": exemplars, "labels": labels, "visible": visible, "objects": objects, "boxes": targets}
    return query.text, row


def _with_exemplars(
    rng: Generator, clip: SyntheticClip, query: ConceptQuery, seen: list[int], boxes: np.ndarray
) -> tuple[ConceptQuery, list[int], int]:
    """Return the concept, its exemplars and their label: alone, they mean all of their noun and colour; a negative one
    takes those of its colour away from a noun."""
    looks = [(a.noun, a.colour) for a in clip.scene.actors]
    chosen = [seen[k] for k in rng.permutation(len(seen))[: int(rng.integers(1, MAX_EXEMPLARS + 1))]]
    if query.kind == "noun" and len({looks[i] for i in seen}) > 1 and rng.random() < 0.5:
        unwanted = pick(rng, seen)
        return replace(query, actors=tuple(i for i in query.actors if looks[i] != looks[unwanted])), [unwanted], 0
    if rng.random() < 0.6:
        chosen = [i for i in chosen if looks[i] == looks[chosen[0]]]
        same = tuple(i for i, look in enumerate(looks) if look == looks[chosen[0]])
        return replace(query, text=VISUAL, actors=same), chosen, 1
    return query, chosen, 1
