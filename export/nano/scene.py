"""Scene description: actors with one path each in 256-unit coordinates, before rendering."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

SIDE = 256
"""Side of the square scene in units; a renderer may draw it at any size in pixels."""


@dataclass(slots=True)
class Path:
    """Offsets over the frames of a clip, each (T,): position in units, scale factor, angle in degrees."""

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray

    @classmethod
    def rest(cls, frames: int) -> Path:
        return cls(np.zeros(frames), np.zeros(frames), np.ones(frames), np.zeros(frames))


@dataclass(slots=True, eq=False)
class Actor:
    """One object of a clip.

    `size` is the longer side in units at scale 1; `x`, `y` (T,) the centre on screen; `motion` names what it does and
    `active` (T,) marks the frames on which it does it; `border` names how it crosses the edge of the image, if it does;
    one with a larger `depth` is nearer and drawn over the others.
    """

    noun: str
    size: float
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    colour: str | None = None
    motion: str = "still"
    active: np.ndarray | None = None
    border: str | None = None
    flip: bool = False
    depth: float = 0.0

    @property
    def extent(self) -> np.ndarray:
        """Longer side on screen (T,), in units."""
        return self.size * self.scale


@dataclass(frozen=True, slots=True)
class Expression:
    """A sentence and its meaning: the index of its actor, and what distinguishes that actor; of a relation also the
    index of the other actor. `unseen`: the pair of noun and attribute never occurs in training."""

    text: str
    target: int
    kind: str
    attribute: str = ""
    anchor: int = -1
    unseen: bool = False


@dataclass(slots=True)
class Scene:
    """Actors, camera and expressions of one clip. The positions of the actors include `camera` (T,2)."""

    frames: int
    camera: np.ndarray
    actors: list[Actor] = field(default_factory=list)
    expressions: list[Expression] = field(default_factory=list)


def motion_path(rng: Generator, motion: str, frames: int, start: int = 0, stop: int | None = None) -> Path:
    """Draw a motion from frame `start` to `stop` (default: the end), at rest before and after."""
    stop = frames if stop is None else stop
    path = Path.rest(frames)
    clock = np.clip(np.arange(frames) - start, 0, stop - start).astype(float)  # steps done since `start`
    steps = max(clock.max(), 1.0)
    if motion in ("left", "right", "up", "down"):
        # between 40 and 130 units in total, however long the motion runs
        speed = np.clip(rng.uniform(5, 9.5), 40 / steps, 130 / steps)
        along = clock * speed * (1 if motion in ("right", "down") else -1)
        setattr(path, "x" if motion in ("left", "right") else "y", along)
    elif motion == "spin":
        path.angle = clock * rng.uniform(22, 40) * rng.choice((-1, 1))
    elif motion in ("grow", "shrink"):
        rate = np.clip(rng.uniform(1.06, 1.1), 1.35 ** (1 / steps), 2.0 ** (1 / steps))
        path.scale = rate**clock if motion == "grow" else rate**-clock
    elif motion == "bounce":
        path.y = -rng.uniform(18, 32) * np.abs(np.sin(np.pi * clock / rng.uniform(3.2, 5.0)))
        path.y[np.arange(frames) >= stop] = 0.0  # end where the motion began, not in mid-air
    return path


def idle_path(rng: Generator, frames: int) -> Path:
    """Draw rest, or a straight motion too slow to be described as moving."""
    path = Path.rest(frames)
    if rng.random() >= 0.5:
        angle, pace = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1.2) * np.arange(frames)
        path.x, path.y = np.cos(angle) * pace, np.sin(angle) * pace
    return path


def border_path(rng: Generator, border: str, frames: int) -> Path:
    """Draw a path across one edge of the image: 0 inside, 1 outside; the caller scales it to the edge's distance."""
    dx, dy = [(-1, 0), (1, 0), (0, -1), (0, 1)][rng.integers(4)]
    duration = 2.5 if frames <= 8 else 3.5

    def crossing(start: float) -> np.ndarray:
        return np.clip((np.arange(frames, dtype=float) - start) / duration, 0, 1)

    if border in ("leave", "gone"):
        outside = crossing(rng.uniform(1.5, max(2.0, frames * 0.5 - duration)))
    elif border == "enter":
        outside = 1 - crossing(rng.uniform(1.0, max(1.5, frames * 0.35)))
    else:  # return
        start = rng.uniform(1.0, frames * 0.25)
        outside = crossing(start) - crossing(start + duration + rng.uniform(0.5, max(1.0, frames * 0.2)))
    path = Path.rest(frames)
    path.x, path.y = dx * outside, dy * outside
    return path


def camera_path(rng: Generator, frames: int) -> np.ndarray:
    """Draw the (T,2) shift of the whole image: none, a pan of at most 1.8 units per frame, or one with hand shake."""
    kind, clock = rng.random(), np.arange(frames)[:, None]
    if kind < 0.35:
        return np.zeros((frames, 2))
    angle = rng.uniform(0, 2 * np.pi)
    pan = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.3, 1.8) * clock
    if kind < 0.7:
        return pan
    phase, period = rng.uniform(0, 2 * np.pi, 2), rng.uniform(5, 11, 2)
    return 0.4 * pan + rng.uniform(1, 3.5) * (np.sin(2 * np.pi * clock / period + phase) - np.sin(phase))
