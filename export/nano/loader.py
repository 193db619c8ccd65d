"""Clips for training: worker processes draw, the trainer reads whole batches out of shared memory.

A batch is a pure function of (stream, index): `stream` says how many frames and which groups, `index` numbers its
batches, so that a resumed run goes on where it stopped, whatever the number of workers.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import queue
import traceback
from collections import deque
from dataclasses import dataclass

import numpy as np

from . import tokenizer as bpe
from .dataset import PIXELS, SyntheticClip, SyntheticDataset
from .grammar import COLOURS, MOTIONS, NOUN_NAMES
from .scene import Actor


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """One sort of batch: `clips` clips of `frames` frames with `sentences` sentences each."""

    name: str
    frames: int
    clips: int
    sentences: int
    visual: bool = False
    """Clicks, boxes and masks instead of sentences."""
    negatives: float = 0.06
    """Part of the sentences that speak of something that is not in the clip."""
    kinds: tuple[str, ...] | None = None
    """Puzzles to draw from; None for all that so many frames can show."""
    memory: bool = True
    """Follow the objects with memory; without, every frame is decoded alone, which is much cheaper."""


@dataclass(slots=True)
class Batch:
    """`frames` uint8 (B,T,S,S,3), `instance_map` uint8 (B,T,S,S), both views that the next batches overwrite; `targets` int64
    (B,K) owner number or 255 for nothing; `tokens` int64 (B*K,L), `token_mask` bool (B*K,L); `kinds` of the B*K sentences;
    `looks` int64 (B,MAX_INSTANCES,3) noun, colour and
    motion of each owner, 0 where there is none; `speeds` float32 (B,T,MAX_INSTANCES,MOTION_SIZE)."""

    stream: BatchSpec
    index: int
    frames: np.ndarray
    instance_map: np.ndarray
    targets: np.ndarray
    tokens: np.ndarray
    token_mask: np.ndarray
    kinds: list[str]
    looks: np.ndarray
    speeds: np.ndarray


NO_TARGET = 255
MAX_INSTANCES = 10
BORDERS = ("leave", "return", "gone", "enter")
APPEARANCE_CLASSES = {
    "noun": len(NOUN_NAMES) + 1,
    "colour": len(COLOURS) + 2,
    "move": 2 + 3 * len(MOTIONS) + len(BORDERS),
}
"""Classes of each column of `Batch.looks`."""
MOTION_SIZE = 4
TYPICAL_MOTION = (6.0, 6.0, 30.0, 0.08)
"""What a lively object does in one frame: units to the right and down, degrees, growth of the logarithm of its size."""


def sample(world: SyntheticDataset, stream: BatchSpec, seed: int) -> tuple[SyntheticClip, list[tuple[int, str, str]]]:
    """SyntheticClip `seed` of the training split and `sentences` triples (owner number, text, kind)."""
    clip = world.clip("train", seed, stream.frames, stream.kinds)
    rng = np.random.default_rng([7, seed, stream.frames])
    if stream.visual:
        return clip, _visible_first(clip, rng, stream.sentences)
    chosen = rng.permutation(len(clip.expressions))
    said = []
    for k in range(stream.sentences):
        if rng.random() < stream.negatives:
            said.append((NO_TARGET, world.absent(clip, rng), "absent"))
        else:
            e = clip.expressions[chosen[k % len(chosen)]]
            said.append((e.target + 1, e.text, e.kind))
    return clip, said


def looks(clip: SyntheticClip) -> np.ndarray:
    """(MAX_INSTANCES,3) noun, colour and motion of each owner: 0 for background, nouns from 1, colours and motions from 2 (1: none)."""
    table = np.zeros((MAX_INSTANCES, 3), np.int64)
    for i, actor in enumerate(clip.scene.actors):
        colour = 1 if actor.colour is None else 2 + tuple(COLOURS).index(actor.colour)
        table[i + 1] = NOUN_NAMES.index(actor.noun) + 1, colour, _move(actor)
    return table


def speeds(clip: SyntheticClip) -> np.ndarray:
    """(T,MAX_INSTANCES,MOTION_SIZE) motion of each owner from each frame to the next in `TYPICAL_MOTION` amounts, the camera's taken away.

    The last frame has the motion that led to it. Background: 0.
    """
    table = np.zeros((len(clip.frames), MAX_INSTANCES, MOTION_SIZE), np.float32)
    if len(clip.frames) == 1:
        return table
    for i, actor in enumerate(clip.scene.actors):
        place = np.stack((actor.x, actor.y), 1) - clip.scene.camera
        steps = np.diff(np.column_stack((place, actor.angle, np.log(actor.scale))), axis=0)
        table[:, i + 1] = np.concatenate((steps, steps[-1:])) / TYPICAL_MOTION
    return table.clip(-2, 2)


def _move(actor: Actor) -> int:
    """The class of what an actor does: a motion all the time, only early or only late, or a way over the border."""
    if actor.border in BORDERS:
        return 2 + 3 * len(MOTIONS) + BORDERS.index(actor.border)
    if actor.move == "still" or actor.active is None or not actor.active.any():
        return 1
    when = 0 if actor.active.all() else 1 if actor.active[0] else 2
    return 2 + 3 * tuple(MOTIONS).index(actor.move) + when


def _visible_first(clip: SyntheticClip, rng: np.random.Generator, count: int) -> list[tuple[int, str, str]]:
    """Actors that show well on frame 0, for prompts that are given there."""
    shown = np.bincount(clip.instance_map[0].ravel(), minlength=len(clip.scene.actors) + 1)[1:]
    good = np.flatnonzero(shown > 0.3 * np.maximum(clip.areas[0], 1))
    good = good[shown[good] > 60]
    good = good if len(good) else np.array([int(shown.argmax())])
    return [(int(good[k % len(good)]) + 1, "", "visual") for k in rng.permutation(max(count, len(good)))[:count]]


def _draw(world: SyntheticDataset, buffer, slot_bytes: int, slot: int, row: int, stream: BatchSpec, seed: int) -> tuple:
    clip, said = sample(world, stream, seed)
    frames_at, owners_at = _views(buffer, slot_bytes, slot, stream, world.painter.size)
    frames_at[row], owners_at[row] = clip.frames, clip.instance_map
    return slot, row, (said, looks(clip), speeds(clip)), None


def _worker(tasks, results, buffer, slot_bytes: int, size: int, atlas) -> None:
    os.nice(5)  # the trainer feeds the device and must not wait for a core
    world = SyntheticDataset(size, atlas)
    while (task := tasks.get()) is not None:
        slot, row, stream, seed = task
        try:
            results.put(_draw(world, buffer, slot_bytes, slot, row, stream, seed))
        except Exception:  # told to the trainer, which stops
            results.put((slot, row, None, traceback.format_exc()))


def _views(buffer, slot_bytes: int, slot: int, stream: BatchSpec, size: int) -> tuple[np.ndarray, np.ndarray]:
    count = stream.clips * stream.frames * size * size
    start = slot * slot_bytes
    frames = np.frombuffer(buffer, np.uint8, 3 * count, start).reshape(stream.clips, stream.frames, size, size, 3)
    instance_map = np.frombuffer(buffer, np.uint8, count, start + 3 * count).reshape(
        stream.clips, stream.frames, size, size
    )
    return frames, instance_map


class Loader:
    """Draws batches ahead. `request(stream, index)` queues one, `next()` gives them back in the order of the requests.

    Without workers batches are drawn in `request`. A batch's arrays stay valid until `ahead` further batches have been requested.
    """

    def __init__(self, streams: list[BatchSpec], workers: int, ahead: int = 4, size: int = PIXELS, atlas=None) -> None:
        self.size, self.ahead, self.atlas = size, ahead, atlas
        self.slot_bytes = max(s.clips * s.frames for s in streams) * size * size * 4
        self.buffer = mmap.mmap(-1, self.slot_bytes * (ahead + 1))
        context = multiprocessing.get_context("fork")
        self.tasks, self.results = (context.Queue(), context.Queue()) if workers else (None, queue.SimpleQueue())
        self.workers = [
            context.Process(
                target=_worker, daemon=True, args=(self.tasks, self.results, self.buffer, self.slot_bytes, size, atlas)
            )
            for _ in range(workers)
        ]
        for worker in self.workers:
            worker.start()
        self.world = None if workers else SyntheticDataset(size, atlas)
        self.tokenizer = bpe.load()
        self.waiting: deque[tuple[int, BatchSpec, int, dict]] = deque()
        self.slots = deque(range(ahead + 1))

    def request(self, stream: BatchSpec, index: int) -> None:
        slot = self.slots.popleft()
        self.slots.append(slot)
        self.waiting.append((slot, stream, index, {}))
        for row in range(stream.clips):
            task = (slot, row, stream, 2 * (index * stream.clips + row) + int(stream.visual))
            if self.workers:
                self.tasks.put(task)
            else:
                self.results.put(_draw(self.world, self.buffer, self.slot_bytes, *task))

    def next(self) -> Batch:
        """The oldest batch asked for. Raises RuntimeError with the worker's traceback if it could not be drawn."""
        slot, stream, index, rows = self.waiting[0]
        while len(rows) < stream.clips:
            at, row, content, error = self.results.get(timeout=300)
            if error:
                raise RuntimeError(f"a worker could not draw a clip:\n{error}")
            next(w for w in self.waiting if w[0] == at)[3][row] = content
        self.waiting.popleft()
        frames, instance_map = _views(self.buffer, self.slot_bytes, slot, stream, self.size)
        said = [triple for row in range(stream.clips) for triple in rows[row][0]]
        tokens, mask = bpe.encode(self.tokenizer, [text for _, text, _ in said], bpe.MAX_TOKENS // 2)
        targets = np.array([t for t, _, _ in said], np.int64).reshape(stream.clips, stream.sentences)
        return Batch(
            stream,
            index,
            frames,
            instance_map,
            targets,
            tokens,
            mask,
            [kind for *_, kind in said],
            *(np.stack([rows[row][i] for row in range(stream.clips)]) for i in (1, 2)),
        )

    def close(self) -> None:
        for _ in self.workers:
            self.tasks.put(None)
        for worker in self.workers:
            worker.join(timeout=5)
            if worker.is_alive():
                worker.terminate()
