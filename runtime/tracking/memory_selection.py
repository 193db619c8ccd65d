"""Memory selection: the past frames that a frame attends to (rules of SAM 2's video predictor)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .object_memory import Page
from .state import Options, Outcome, Track


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a network looks back: `slots` remembered maps with their conditioning row, `pointers` object pointers."""

    slots: int
    pointers: int


@dataclass(frozen=True, slots=True)
class Recall:
    """What one object sees of its past from one frame: pages with their rows of the temporal embedding, pointers with
    their distance in frames, and the `longest` one, by which distances are divided."""

    pages: list[Page]
    ages: list[int]
    pointers: list[np.ndarray]
    distances: list[int]
    longest: int

    @property
    def fill(self) -> tuple[int, int]:
        return len(self.pages), len(self.pointers)


def recall(track: Track, frame: int, frames: int | None, reverse: bool, reach: Reach, options: Options) -> Recall:
    """What `track` looks at from `frame` of a video of `frames` frames (None: without end)."""
    near, far = _nearest(frame, track.conditioning, options.max_cond_frames_in_attn)
    sign = -1 if reverse else 1
    pages = [(reach.slots - 1, outcome.page) for outcome in near.values()]
    for age, past in strided(frame, reverse, reach.slots, options.memory_temporal_stride):
        outcome = track.others.get(past) or far.get(past)
        if outcome is not None and outcome.page is not None:
            pages.append((age, outcome.page))
    # attention does not see their order, and sorted pages lie side by side more often
    pages.sort(key=lambda item: item[1].number)
    pointers = [((frame - t) * sign, outcome.pointer) for t, outcome in near.items() if (frame - t) * sign >= 0]
    longest = (reach.pointers if frames is None else min(reach.pointers, frames)) - 1
    for distance in range(1, longest + 1):
        past = frame - sign * distance
        if past < 0 or (frames is not None and past >= frames):
            break
        outcome = track.others.get(past) or far.get(past)
        if outcome is not None:
            pointers.append((distance, outcome.pointer))
    return Recall(
        [page for _, page in pages],
        [age for age, _ in pages],
        [pointer for _, pointer in pointers],
        [distance for distance, _ in pointers],
        longest,
    )


def strided(frame: int, reverse: bool, slots: int, stride: int) -> Iterator[tuple[int, int]]:
    """(row of the temporal embedding, frame) of the frames remembered besides conditioning ones, the furthest first."""
    sign = -1 if reverse else 1
    # multiples of the stride, counted from two frames back; the frame just before comes in any case
    nearest = -(-(frame + 2) // stride) * stride if reverse else (frame - 2) // stride * stride
    for back in range(slots - 1, 1, -1):
        yield back - 1, nearest - sign * (back - 2) * stride
    yield 0, frame - sign


def _nearest(
    frame: int, conditioning: Mapping[int, Outcome], most: int | None
) -> tuple[Mapping[int, Outcome], Mapping[int, Outcome]]:
    """The conditioning frames that are looked at, and the rest: the nearest on each side, then the nearest of all."""
    if most is None or len(conditioning) <= most:
        return conditioning, {}
    before = max((t for t in conditioning if t < frame), default=None)
    after = min((t for t in conditioning if t >= frame), default=None)
    chosen = [t for t in (before, after) if t is not None]
    rest = sorted((t for t in conditioning if t not in chosen), key=lambda t: abs(t - frame))
    chosen += rest[: most - len(chosen)]
    near: dict[int, Any] = {t: conditioning[t] for t in chosen}
    return near, {t: outcome for t, outcome in conditioning.items() if t not in near}
