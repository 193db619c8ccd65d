"""Training batches of synthetic clips with labels, drawn by worker processes or by the trainer itself.

A batch is a pure function of (spec, index), where `index` numbers the batches of a spec; a resumed run therefore
continues where it stopped, with any number of workers.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import tokenizer as bpe
from .data_parallel import kept_garbage
from .dataset import PIXELS, SyntheticClip, SyntheticDataset
from .grammar import COLOURS, MOTIONS, NOUNS, absent_sentence
from .scene import Actor

NO_TARGET = 255
"""Instance id of a sentence about something that is not in the clip."""
MAX_INSTANCES = 10
"""Rows of a label table; row 0 is the background, row i+1 actor i."""
BORDERS = ("leave", "return", "gone", "enter")
APPEARANCE_CLASSES = {"noun": len(NOUNS) + 1, "colour": len(COLOURS) + 2, "motion": 2 + 3 * len(MOTIONS) + len(BORDERS)}
"""Number of classes in each column of `appearance_labels`."""
TYPICAL_MOTION = (6.0, 6.0, 30.0, 0.08)
"""Unit of `motion_labels`: typical motion per frame to the right, down, in degrees, and in the logarithm of size."""


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
    (B,MAX_INSTANCES,3) and `motion` float32 (B,T,MAX_INSTANCES,4) labels."""

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
        return clip, _visual_targets(clip, rng, spec.sentences)
    order, nouns = rng.permutation(len(clip.expressions)), {actor.noun for actor in clip.scene.actors}
    targets = []
    for k in range(spec.sentences):
        if rng.random() < spec.negatives:
            targets.append(Target(NO_TARGET, absent_sentence(rng, nouns), "absent"))
        else:
            e = clip.expressions[order[k % len(order)]]
            targets.append(Target(e.target + 1, e.text, e.kind))
    return clip, targets


def _visual_targets(clip: SyntheticClip, rng: np.random.Generator, count: int) -> list[Target]:
    """Choose actors for prompts on frame 0, where they are clearly visible or at least one is as visible as any."""
    good = clip.prompt_targets()
    if not len(good):
        good = np.bincount(clip.instance_map[0].ravel(), minlength=2)[1:].argmax(0, keepdims=True)
    return [Target(int(good[k % len(good)]) + 1, "", "visual") for k in rng.permutation(max(count, len(good)))[:count]]


def appearance_labels(clip: SyntheticClip) -> np.ndarray:
    """Return (MAX_INSTANCES,3) int64 noun, colour and motion class of each instance: 0 for background, nouns from 1,
    colours and motions from 2 (1: none)."""
    table = np.zeros((MAX_INSTANCES, 3), np.int64)
    for i, actor in enumerate(clip.scene.actors, 1):
        colour = 1 if actor.colour is None else 2 + tuple(COLOURS).index(actor.colour)
        table[i] = NOUNS.index(actor.noun) + 1, colour, _motion_class(actor)
    return table


def _motion_class(actor: Actor) -> int:
    """Return the class of a motion that is permanent, early or late, or of a way across the border; 1: none."""
    if actor.border in BORDERS:
        return 2 + 3 * len(MOTIONS) + BORDERS.index(actor.border)
    if actor.motion == "still" or actor.active is None or not actor.active.any():
        return 1
    when = 0 if actor.active.all() else 1 if actor.active[0] else 2
    return 2 + 3 * MOTIONS.index(actor.motion) + when


def motion_labels(clip: SyntheticClip) -> np.ndarray:
    """Return (T,MAX_INSTANCES,4) float32 motion of each instance to the next frame, relative to the camera, in
    `TYPICAL_MOTION`; 0 for background. The last frame repeats the motion before it."""
    table = np.zeros((len(clip.frames), MAX_INSTANCES, len(TYPICAL_MOTION)), np.float32)
    if len(clip.frames) == 1:
        return table
    for i, actor in enumerate(clip.scene.actors, 1):
        position = np.stack((actor.x, actor.y), 1) - clip.scene.camera
        steps = np.diff(np.column_stack((position, actor.angle, np.log(actor.scale))), axis=0)
        table[:, i] = np.concatenate((steps, steps[-1:])) / TYPICAL_MOTION
    return table.clip(-2, 2)


Row = tuple[np.ndarray, np.ndarray, list[Target], np.ndarray, np.ndarray]
"""One clip of a batch: frames, instance map, targets, appearance and motion labels."""
_dataset: SyntheticDataset
"""The dataset of a worker process."""


def _start_worker(dataset: SyntheticDataset) -> None:
    global _dataset
    os.nice(5)  # the trainer feeds the device and must not wait for a core
    _dataset = dataset


def _draw(spec: BatchSpec, seed: int, dataset: SyntheticDataset | None = None) -> Row:
    clip, targets = sample(dataset or _dataset, spec, seed)
    return clip.frames, clip.instance_map, targets, appearance_labels(clip), motion_labels(clip)


class Loader:
    """Draws batches ahead: `request(spec, index)` queues one, `next()` returns them in the order of the requests.

    Without workers batches are drawn in `request`. `ahead` is the number of requests that the caller keeps open.
    """

    def __init__(self, workers: int, ahead: int = 4, size: int = PIXELS) -> None:
        self.ahead, self.dataset = ahead, SyntheticDataset(size)
        self.pool: ProcessPoolExecutor | None = None
        if workers:
            # not multiprocessing.Pool, which hangs where it ends a worker that holds the lock of its results
            fork = multiprocessing.get_context("fork")
            self.pool = ProcessPoolExecutor(workers, fork, _start_worker, (self.dataset,))
            with kept_garbage():
                self.pool.submit(int).result()  # it forks with the first work
        self.tokenizer = bpe.load()
        self.pending: deque[tuple[BatchSpec, list[Row] | list[Future[Row]]]] = deque()

    def request(self, spec: BatchSpec, index: int) -> None:
        # visual batches use the odd seeds, the others the even ones
        tasks = [(spec, 2 * (index * spec.clips + row) + int(spec.visual)) for row in range(spec.clips)]
        if self.pool:
            self.pending.append((spec, [self.pool.submit(_draw, *task) for task in tasks]))
        else:
            self.pending.append((spec, [_draw(*task, self.dataset) for task in tasks]))

    def next(self) -> Batch:
        """Return the oldest requested batch. Raises the exception of the worker, or TimeoutError after five minutes."""
        spec, rows = self.pending.popleft()
        columns = zip(*(row.result(timeout=300) if isinstance(row, Future) else row for row in rows), strict=True)
        frames, instance_map, of_clips, appearance, motion = columns
        targets = [target for of_clip in of_clips for target in of_clip]
        ids = np.array([t.instance_id for t in targets], np.int64).reshape(spec.clips, spec.sentences)
        tokens, mask = bpe.encode(self.tokenizer, [t.text for t in targets], bpe.MAX_TOKENS // 2)
        images, kinds = (np.stack(frames), np.stack(instance_map)), [t.kind for t in targets]
        return Batch(spec, *images, ids, tokens, mask, kinds, np.stack(appearance), np.stack(motion))

    def close(self) -> None:
        """End the workers, when they have drawn the clips that they have begun."""
        if self.pool:
            self.pool.shutdown(cancel_futures=True)
