"""Clips for training: worker processes draw, the trainer reads whole batches out of shared memory.

A batch is a pure function of (stream, index): `stream` says how many frames and which puzzles, `index` numbers its
batches, so that a resumed run goes on where it stopped, whatever the number of workers.
"""

from __future__ import annotations

import mmap
import multiprocessing
import traceback
from collections import deque
from dataclasses import dataclass

import numpy as np

from . import tokenizer as bpe
from .scene import SIDE
from .world import World


@dataclass(frozen=True, slots=True)
class Stream:
    """One sort of batch: `clips` clips of `frames` frames with `sentences` sentences each."""

    name: str
    frames: int
    clips: int
    sentences: int
    visual: bool = False
    """Clicks, boxes and masks instead of sentences."""
    negatives: float = 0.06
    """Part of the sentences that speak of something that is not in the clip."""


@dataclass(slots=True)
class Batch:
    """`frames` uint8 (B,T,S,S,3), `owners` uint8 (B,T,S,S), both views that the next batches overwrite; `targets` int64
    (B,K) owner number or 255 for nothing; `tokens` int64 (B*K,L), `token_mask` bool (B*K,L); `kinds` of the B*K sentences."""

    stream: Stream
    index: int
    frames: np.ndarray
    owners: np.ndarray
    targets: np.ndarray
    tokens: np.ndarray
    token_mask: np.ndarray
    kinds: list[str]


NOBODY = 255


def sample(world: World, stream: Stream, seed: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str, str]]]:
    """Frames, owners and `sentences` triples (owner number, text, kind) of clip `seed` of the training split."""
    clip = world.clip("train", seed, stream.frames)
    rng = np.random.default_rng([7, seed, stream.frames])
    if stream.visual:
        return clip.frames, clip.owners, _visible_first(clip, rng, stream.sentences)
    chosen = rng.permutation(len(clip.expressions))
    said = []
    for k in range(stream.sentences):
        if rng.random() < stream.negatives:
            said.append((NOBODY, world.absent(clip, rng), "absent"))
        else:
            e = clip.expressions[chosen[k % len(chosen)]]
            said.append((e.target + 1, e.text, e.kind))
    return clip.frames, clip.owners, said


def _visible_first(clip, rng: np.random.Generator, count: int) -> list[tuple[int, str, str]]:
    """Actors that show well on frame 0, for prompts that are given there."""
    shown = np.bincount(clip.owners[0].ravel(), minlength=len(clip.scene.actors) + 1)[1:]
    good = np.flatnonzero(shown > 0.3 * np.maximum(clip.areas[0], 1))
    good = good[shown[good] > 60]
    good = good if len(good) else np.array([int(shown.argmax())])
    return [(int(good[k % len(good)]) + 1, "", "visual") for k in rng.permutation(max(count, len(good)))[:count]]


def _worker(tasks, results, buffer, shapes, size: int, atlas) -> None:
    world = World(size, atlas)
    while (task := tasks.get()) is not None:
        slot, row, stream, seed = task
        try:
            frames, owners, said = sample(world, stream, seed)
            frames_at, owners_at = _views(buffer, shapes, slot, stream, size)
            frames_at[row], owners_at[row] = frames, owners
            results.put((slot, row, said, None))
        except Exception:  # told to the trainer, which stops
            results.put((slot, row, None, traceback.format_exc()))


def _views(buffer, slot_bytes: int, slot: int, stream: Stream, size: int) -> tuple[np.ndarray, np.ndarray]:
    count = stream.clips * stream.frames * size * size
    start = slot * slot_bytes
    frames = np.frombuffer(buffer, np.uint8, 3 * count, start).reshape(stream.clips, stream.frames, size, size, 3)
    owners = np.frombuffer(buffer, np.uint8, count, start + 3 * count).reshape(stream.clips, stream.frames, size, size)
    return frames, owners


class Loader:
    """Draws batches ahead. `request(stream, index)` queues one, `next()` gives them back in the order of the requests.

    A batch's arrays stay valid until `ahead` further batches have been requested.
    """

    def __init__(self, streams: list[Stream], workers: int, ahead: int = 4, size: int = SIDE, atlas=None) -> None:
        self.size, self.ahead = size, ahead
        self.slot_bytes = max(s.clips * s.frames for s in streams) * size * size * 4
        self.buffer = mmap.mmap(-1, self.slot_bytes * (ahead + 1))
        context = multiprocessing.get_context("fork")
        self.tasks, self.results = context.Queue(), context.Queue()
        self.workers = [context.Process(target=_worker, daemon=True, args=(
            self.tasks, self.results, self.buffer, self.slot_bytes, size, atlas)) for _ in range(workers)]
        for worker in self.workers:
            worker.start()
        self.tokenizer = bpe.load()
        self.waiting: deque[tuple[int, Stream, int, dict]] = deque()
        self.slots = deque(range(ahead + 1))

    def request(self, stream: Stream, index: int) -> None:
        slot = self.slots.popleft()
        self.slots.append(slot)
        self.waiting.append((slot, stream, index, {}))
        for row in range(stream.clips):
            # seeds of a stream never repeat; streams of equal length are kept apart by the name's stride
            self.tasks.put((slot, row, stream, 2 * (index * stream.clips + row) + int(stream.visual)))

    def next(self) -> Batch:
        """The oldest batch asked for. Raises RuntimeError with the worker's traceback if it could not be drawn."""
        slot, stream, index, rows = self.waiting[0]
        while len(rows) < stream.clips:
            at, row, said, error = self.results.get(timeout=300)
            if error:
                raise RuntimeError(f"a worker could not draw a clip:\n{error}")
            next(w for w in self.waiting if w[0] == at)[3][row] = said
        self.waiting.popleft()
        frames, owners = _views(self.buffer, self.slot_bytes, slot, stream, self.size)
        said = [triple for row in range(stream.clips) for triple in rows[row]]
        tokens, mask = bpe.encode(self.tokenizer, [text for _, text, _ in said], bpe.MAX_TOKENS // 2)
        targets = np.array([t for t, _, _ in said], np.int64).reshape(stream.clips, stream.sentences)
        return Batch(stream, index, frames, owners, targets, tokens, mask, [kind for *_, kind in said])

    def close(self) -> None:
        for _ in self.workers:
            self.tasks.put(None)
        for worker in self.workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.terminate()
