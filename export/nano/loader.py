"""Training batches of synthetic clips, drawn by worker processes or by the trainer itself.

A batch is a pure function of (spec, index), where `index` numbers the batches of a spec; a resumed run therefore
continues where it stopped, with any number of workers.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult
from typing import NamedTuple

import numpy as np

from . import tokenizer as bpe
from .dataset import PIXELS, SyntheticClip, SyntheticDataset
from .labels import appearance_labels, motion_labels

NO_TARGET = 255
"""Instance id of a sentence about something that is not in the clip."""


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """Composition of a kind of batch: `clips` clips of `frames` frames with `sentences` sentences each."""

    name: str
    frames: int
    clips: int
    sentences: int
    visual: bool = False
    """Clicks, boxes and masks instead of sentences."""
    negatives: float = 0.06
    """Part of the sentences that are about something that is not in the clip."""
    kinds: tuple[str, ...] | None = None
    """Contrast groups to draw from; None for all that this number of frames can show."""
    memory: bool = True
    """Track the objects with memory. Without, every frame is decoded alone, which is much cheaper."""


class Target(NamedTuple):
    """A sentence and the instance that it refers to (`NO_TARGET` for none)."""

    instance_id: int
    text: str
    kind: str


@dataclass(slots=True)
class Batch:
    """B clips with K sentences each: `frames` uint8 (B,T,S,S,3), `instance_map` uint8 (B,T,S,S), `targets` int64 (B,K)
    instance ids; `tokens` int64 and `token_mask` bool (B*K,L); `kinds` of the B*K sentences; `appearance` int64
    (B,MAX_INSTANCES,3) and `motion` float32 (B,T,MAX_INSTANCES,4) as in `labels`."""

    spec: BatchSpec
    frames: np.ndarray
    instance_map: np.ndarray
    targets: np.ndarray
    tokens: np.ndarray
    token_mask: np.ndarray
    kinds: list[str]
    appearance: np.ndarray
    motion: np.ndarray


def sample(dataset: SyntheticDataset, spec: BatchSpec, seed: int) -> tuple[SyntheticClip, list[Target]]:
    """Draw clip `seed` of the training split and its targets."""
    clip = dataset.clip("train", seed, spec.frames, spec.kinds)
    rng = np.random.default_rng([7, seed, spec.frames])
    if spec.visual:
        return clip, _visible_targets(clip, rng, spec.sentences)
    order = rng.permutation(len(clip.expressions))
    targets = []
    for k in range(spec.sentences):
        if rng.random() < spec.negatives:
            targets.append(Target(NO_TARGET, dataset.absent_sentence(clip, rng), "absent"))
        else:
            e = clip.expressions[order[k % len(order)]]
            targets.append(Target(e.target + 1, e.text, e.kind))
    return clip, targets


def _visible_targets(clip: SyntheticClip, rng: np.random.Generator, count: int) -> list[Target]:
    """Choose actors that are clearly visible on frame 0, for prompts given there."""
    visible = np.bincount(clip.instance_map[0].ravel(), minlength=len(clip.scene.actors) + 1)[1:]
    good = np.flatnonzero((visible > 0.3 * np.maximum(clip.areas[0], 1)) & (visible > 60))
    good = good if len(good) else np.array([int(visible.argmax())])
    return [Target(int(good[k % len(good)]) + 1, "", "visual") for k in rng.permutation(max(count, len(good)))[:count]]


Row = tuple[np.ndarray, np.ndarray, list[Target], np.ndarray, np.ndarray]
"""One clip of a batch: frames, instance map, targets, appearance and motion labels."""


def _draw(dataset: SyntheticDataset, spec: BatchSpec, seed: int) -> Row:
    clip, targets = sample(dataset, spec, seed)
    return clip.frames, clip.instance_map, targets, appearance_labels(clip), motion_labels(clip)


_worker_dataset: SyntheticDataset | None = None


def _start_worker(size: int, atlas: np.ndarray | None) -> None:
    global _worker_dataset
    os.nice(5)  # the trainer feeds the device and must not wait for a core
    _worker_dataset = SyntheticDataset(size, atlas)


def _draw_in_worker(spec: BatchSpec, seed: int) -> Row:
    return _draw(_worker_dataset, spec, seed)


class Loader:
    """Draws batches ahead: `request(spec, index)` queues one, `next()` returns them in the order of the requests.

    Without workers batches are drawn in `request`. `ahead` is the number of requests that the caller keeps open.
    """

    def __init__(self, workers: int, ahead: int = 4, size: int = PIXELS, atlas: np.ndarray | None = None) -> None:
        self.ahead, self.atlas = ahead, atlas
        self.dataset = None if workers else SyntheticDataset(size, atlas)
        self.pool = multiprocessing.get_context("fork").Pool(workers, _start_worker, (size, atlas)) if workers else None
        self.tokenizer = bpe.load()
        self.pending: deque[tuple[BatchSpec, list[Row] | AsyncResult[list[Row]]]] = deque()

    def request(self, spec: BatchSpec, index: int) -> None:
        # visual batches use the odd seeds, the others the even ones
        seeds = [2 * (index * spec.clips + row) + int(spec.visual) for row in range(spec.clips)]
        if self.pool is None:
            self.pending.append((spec, [_draw(self.dataset, spec, seed) for seed in seeds]))
        else:
            tasks = [(spec, seed) for seed in seeds]
            self.pending.append((spec, self.pool.starmap_async(_draw_in_worker, tasks, chunksize=1)))

    def next(self) -> Batch:
        """Return the oldest requested batch. Raises the exception of the worker, or TimeoutError after five minutes."""
        spec, rows = self.pending.popleft()
        rows = rows if isinstance(rows, list) else rows.get(timeout=300)
        frames, instance_map, targets, appearance, motion = zip(*rows, strict=True)
        flat = [target for of_clip in targets for target in of_clip]
        ids = np.array([t.instance_id for t in flat], np.int64).reshape(spec.clips, spec.sentences)
        tokens, mask = bpe.encode(self.tokenizer, [t.text for t in flat], bpe.MAX_TOKENS // 2)
        frames, instance_map, appearance, motion = map(np.stack, (frames, instance_map, appearance, motion))
        return Batch(spec, frames, instance_map, ids, tokens, mask, [t.kind for t in flat], appearance, motion)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.terminate()
            self.pool.join()
