"""Training batches: worker processes draw clips into shared memory, from which the trainer reads whole batches.

A batch is a pure function of (spec, index), where `index` numbers the batches of a spec; a resumed run therefore
continues where it stopped, with any number of workers.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import queue
import traceback
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
    """B clips with K sentences each.

    `frames` uint8 (B,T,S,S,3) and `instance_map` uint8 (B,T,S,S) are views that later batches overwrite; `targets`
    int64 (B,K) instance ids; `tokens` int64 and `token_mask` bool (B*K,L); `kinds` of the B*K sentences; `appearance`
    int64 (B,MAX_INSTANCES,3) and `motion` float32 (B,T,MAX_INSTANCES,4) as in `labels`.
    """

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
    """Clip `seed` of the training split and its targets."""
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
    """Actors that are clearly visible on frame 0, for prompts given there."""
    visible = np.bincount(clip.instance_map[0].ravel(), minlength=len(clip.scene.actors) + 1)[1:]
    good = np.flatnonzero((visible > 0.3 * np.maximum(clip.areas[0], 1)) & (visible > 60))
    good = good if len(good) else np.array([int(visible.argmax())])
    return [Target(int(good[k % len(good)]) + 1, "", "visual") for k in rng.permutation(max(count, len(good)))[:count]]


@dataclass(slots=True)
class _Pending:
    """A requested batch. `rows`: targets, appearance and motion of the clips drawn so far, by row."""

    slot: int
    spec: BatchSpec
    rows: dict[int, tuple[list[Target], np.ndarray, np.ndarray]] = field(default_factory=dict)


class _Slots:
    """Shared memory for the pixels of `count` batches."""

    def __init__(self, specs: list[BatchSpec], count: int, size: int) -> None:
        self.size, self.slot_bytes = size, max(s.clips * s.frames for s in specs) * size * size * 4
        self.memory = mmap.mmap(-1, self.slot_bytes * count)

    def views(self, slot: int, spec: BatchSpec) -> tuple[np.ndarray, np.ndarray]:
        """Frames uint8 (B,T,S,S,3) and instance map uint8 (B,T,S,S) of a batch."""
        shape = (spec.clips, spec.frames, self.size, self.size)
        count, start = int(np.prod(shape)), slot * self.slot_bytes
        frames = np.frombuffer(self.memory, np.uint8, 3 * count, start).reshape(*shape, 3)
        return frames, np.frombuffer(self.memory, np.uint8, count, start + 3 * count).reshape(shape)

    def draw(self, dataset: SyntheticDataset, slot: int, row: int, spec: BatchSpec, seed: int) -> tuple:
        """Draw one clip of a batch. Returns (slot, row, content for `_Pending.rows`, error)."""
        clip, targets = sample(dataset, spec, seed)
        frames, instance_map = self.views(slot, spec)
        frames[row], instance_map[row] = clip.frames, clip.instance_map
        return slot, row, (targets, appearance_labels(clip), motion_labels(clip)), None


def _worker(tasks: Any, results: Any, slots: _Slots, atlas: np.ndarray | None) -> None:
    os.nice(5)  # the trainer feeds the device and must not wait for a core
    dataset = SyntheticDataset(slots.size, atlas)
    while (task := tasks.get()) is not None:
        try:
            results.put(slots.draw(dataset, *task))
        except Exception:  # reported to the trainer, which stops
            results.put((*task[:2], None, traceback.format_exc()))


class Loader:
    """Draws batches ahead: `request(spec, index)` queues one, `next()` returns them in the order of the requests.

    Without workers batches are drawn in `request`. The arrays of a batch stay valid until `ahead` more batches have
    been requested.
    """

    def __init__(
        self, specs: list[BatchSpec], workers: int, ahead: int = 4, size: int = PIXELS, atlas: np.ndarray | None = None
    ) -> None:
        self.ahead, self.atlas = ahead, atlas
        self.slots, self.free = _Slots(specs, ahead + 1, size), deque(range(ahead + 1))
        context = multiprocessing.get_context("fork")
        self.tasks, self.results = (context.Queue(), context.Queue()) if workers else (None, queue.SimpleQueue())
        arguments = (self.tasks, self.results, self.slots, atlas)
        self.workers = [context.Process(target=_worker, daemon=True, args=arguments) for _ in range(workers)]
        for worker in self.workers:
            worker.start()
        self.dataset = None if workers else SyntheticDataset(size, atlas)
        self.tokenizer = bpe.load()
        self.pending: deque[_Pending] = deque()

    def request(self, spec: BatchSpec, index: int) -> None:
        slot = self.free[0]
        self.free.rotate(-1)
        self.pending.append(_Pending(slot, spec))
        for row in range(spec.clips):
            # visual batches use the odd seeds, the others the even ones
            task = (slot, row, spec, 2 * (index * spec.clips + row) + int(spec.visual))
            if self.workers:
                self.tasks.put(task)
            else:
                self.results.put(self.slots.draw(self.dataset, *task))

    def next(self) -> Batch:
        """The oldest requested batch. Raises RuntimeError with the traceback of the worker if drawing failed."""
        oldest = self.pending[0]
        spec = oldest.spec
        while len(oldest.rows) < spec.clips:
            slot, row, content, error = self.results.get(timeout=300)
            if error:
                raise RuntimeError(f"a worker could not draw a clip:\n{error}")
            next(p for p in self.pending if p.slot == slot).rows[row] = content
        self.pending.popleft()
        targets, appearance, motion = zip(*(oldest.rows[row] for row in range(spec.clips)), strict=True)
        flat = [target for of_clip in targets for target in of_clip]
        tokens, mask = bpe.encode(self.tokenizer, [t.text for t in flat], bpe.MAX_TOKENS // 2)
        ids = np.array([t.instance_id for t in flat], np.int64).reshape(spec.clips, spec.sentences)
        return Batch(
            spec,
            *self.slots.views(oldest.slot, spec),
            ids,
            tokens,
            mask,
            [t.kind for t in flat],
            np.stack(appearance),
            np.stack(motion),
        )

    def close(self) -> None:
        for _ in self.workers:
            self.tasks.put(None)
        for worker in self.workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.terminate()
