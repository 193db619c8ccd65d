"""Who moves how: actors with one path each, in the 256-unit picture, before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

SIDE = 256
"""Units of the picture. A renderer may draw it at another size."""


@dataclass(slots=True)
class Path:
    """Offsets over the frames of a clip, each (T,): place in units, scale factor, angle in degrees."""

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray

    @classmethod
    def rest(cls, frames: int) -> Path:
        return cls(np.zeros(frames), np.zeros(frames), np.ones(frames), np.zeros(frames))

    def then(self, other: Path) -> Path:
        """MuonAdamW at once."""
        return Path(self.x + other.x, self.y + other.y, self.scale * other.scale, self.angle + other.angle)


@dataclass(slots=True)
class Actor:
    """One object of a clip.

    `size` is the longer side in units at scale 1; `x`, `y` (T,) the centre on screen; `move` names what it does, `active`
    (T,) says on which frames it does it; `border` names how it crosses the picture's edge, if it does.
    """

    noun: str
    size: float
    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray
    angle: np.ndarray
    colour: str | None = None
    move: str = "still"
    active: np.ndarray | None = None
    border: str | None = None
    flip: bool = False
    depth: float = 0.0
    """Larger is nearer: drawn later, over the others."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A sentence and what it means: which actor, and what tells it apart."""

    text: str
    target: int
    kind: str
    attribute: str | None = None
    anchor: int | None = None
    unseen: bool = False
    """The pair of noun and attribute never occurs in training."""


@dataclass(slots=True)
class Scene:
    """Actors, camera and expressions of one clip. `camera` (T,2) is already in the actors' places."""

    frames: int
    camera: np.ndarray
    actors: list[Actor] = field(default_factory=list)
    expressions: list[Expression] = field(default_factory=list)


def progress(frames: int, start: int, stop: int) -> np.ndarray:
    """(T,) number of steps done since `start`, at most `stop - start`: the clock of a motion."""
    return np.clip(np.arange(frames) - start, 0, stop - start).astype(float)


def motion(rng: np.random.Generator, move: str, frames: int, start: int = 0, stop: int | None = None) -> Path:
    """A motion that runs from frame `start` to `stop` (default: to the end) and is at rest before and after."""
    stop = frames if stop is None else stop
    path, clock = Path.rest(frames), progress(frames, start, stop)
    steps = max(clock.max(), 1.0)
    if move in ("left", "right", "up", "down"):
        # at least 40 units in all, at most 130, however long it runs
        speed = np.clip(rng.uniform(5, 9.5), 40 / steps, 130 / steps)
        along = clock * speed * (1 if move in ("right", "down") else -1)
        if move in ("left", "right"):
            path.x = along
        else:
            path.y = along
    elif move == "spin":
        path.angle = clock * rng.uniform(22, 40) * rng.choice((-1, 1))
    elif move in ("grow", "shrink"):
        rate = np.clip(rng.uniform(1.06, 1.1), 1.35 ** (1 / steps), 2.0 ** (1 / steps))
        path.scale = rate**clock if move == "grow" else rate**-clock
    elif move == "bounce":
        path.y = -rng.uniform(18, 32) * np.abs(np.sin(np.pi * clock / rng.uniform(3.2, 5.0)))
    elif move == "wobble":
        path.angle = rng.uniform(20, 32) * np.sin(2 * np.pi * clock / rng.uniform(3.5, 5.5)) * rng.choice((-1, 1))
    elif move == "circle":
        turn = 2 * np.pi * clock / rng.uniform(7, 10) * rng.choice((-1, 1)) + rng.uniform(0, 2 * np.pi)
        radius = rng.uniform(18, 28)
        path.x = radius * (np.cos(turn) - np.cos(turn[0]))
        path.y = radius * (np.sin(turn) - np.sin(turn[0]))
    elif move != "still":
        raise ValueError(f"no motion is called {move!r}")
    if move in ("bounce", "wobble"):  # come to rest where the motion began, not in mid-air
        after = np.arange(frames) >= stop
        path.y[after], path.angle[after] = 0.0, 0.0
    return path


def drift(rng: np.random.Generator, frames: int, speed: float = 1.2) -> Path:
    """Slow straight motion that nobody would call moving."""
    path, angle = Path.rest(frames), rng.uniform(0, 2 * np.pi)
    pace = rng.uniform(0, speed) * np.arange(frames)
    path.x, path.y = np.cos(angle) * pace, np.sin(angle) * pace
    return path


def crossing(rng: np.random.Generator, border: str, frames: int) -> tuple[Path, np.ndarray]:
    """A way over the picture's edge: path relative to a place inside, and (T,) how far outside it is (0 inside, 1 gone)."""
    side = rng.integers(4)
    clock = np.arange(frames, dtype=float)
    quick = 2.5 if frames <= 8 else 3.5
    if border in ("leave", "gone"):
        start = rng.uniform(1.5, max(2.0, frames * 0.5 - quick))
        out = np.clip((clock - start) / quick, 0, 1)
    elif border == "enter":
        start = rng.uniform(1.0, max(1.5, frames * 0.35))
        out = 1 - np.clip((clock - start) / quick, 0, 1)
    else:  # return
        start = rng.uniform(1.0, frames * 0.25)
        back = start + quick + rng.uniform(0.5, max(1.0, frames * 0.2))
        out = np.clip((clock - start) / quick, 0, 1) - np.clip((clock - back) / quick, 0, 1)
    path = Path.rest(frames)
    direction = [(-1, 0), (1, 0), (0, -1), (0, 1)][side]
    path.x, path.y = direction[0] * out, direction[1] * out  # scaled by the caller to the edge's distance
    return path, out


def camera(rng: np.random.Generator, frames: int) -> np.ndarray:
    """(T,2) shift of the whole picture: still, a pan of at most 1.8 units per frame, or a hand that shakes a little."""
    kind, clock = rng.random(), np.arange(frames)[:, None]
    if kind < 0.35:
        return np.zeros((frames, 2))
    angle = rng.uniform(0, 2 * np.pi)
    pan = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.3, 1.8) * clock
    if kind < 0.7:
        return pan
    phase, period = rng.uniform(0, 2 * np.pi, 2), rng.uniform(5, 11, 2)
    return 0.4 * pan + rng.uniform(1, 3.5) * (np.sin(2 * np.pi * clock / period + phase) - np.sin(phase))
