"""Placement of actors and wording of sentences in one scene, shared by all contrast groups of `scene_generator`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .grammar import COLOURS, NOUNS, held_out, phrase, pick
from .scene import SIDE, Actor, Expression, Path, Scene, camera_path, drift_path, motion_path


class NoRoomError(LookupError):
    """A scene has no position for an actor, or no noun left."""


class SceneBuilder:
    """One scene under construction. `allow_unseen`: held-out pairs may occur (test split only)."""

    def __init__(self, rng: np.random.Generator, frames: int, allow_unseen: bool) -> None:
        self.rng, self.frames, self.allow_unseen = rng, frames, allow_unseen
        self.scene = Scene(frames, camera_path(rng, frames))
        self.max_actors = int(rng.integers(3, 7))
        self.crowded = rng.random() < 0.4
        # in the test split, some scenes prefer pairs that training never shows
        self.prefer_unseen = allow_unseen and rng.random() < 0.35
        self.unused_nouns = [NOUNS[i] for i in rng.permutation(len(NOUNS))]

    @property
    def free(self) -> int:
        """Number of actors that may still be added; negative if there are too many."""
        return self.max_actors - len(self.scene.actors)

    def noun(self, *attributes: str) -> str:
        """Take an unused noun that may be shown with all `attributes`. Raises NoRoomError."""
        for i, noun in enumerate(self.unused_nouns):
            if self.allow_unseen or not any(held_out(noun, a) for a in attributes):
                return self.unused_nouns.pop(i)
        raise NoRoomError

    def noun_and_attributes(self, options: tuple[str, ...], count: int) -> tuple[str, list[str]]:
        """Take an unused noun and `count` different attributes for it; held-out ones come first if they are
        preferred."""
        noun = self.noun()
        allowed = [a for a in options if self.allow_unseen or not held_out(noun, a)]
        order = [allowed[i] for i in self.rng.permutation(len(allowed))]
        if self.prefer_unseen:
            order.sort(key=lambda a: not held_out(noun, a))
        return noun, order[:count]

    def size(self, low: float = 58, high: float = 96) -> float:
        return float(self.rng.uniform(low, high) * (0.9 if self.max_actors > 5 else 1.0))

    def colour(self, noun: str, probability: float = 0.35) -> str | None:
        if self.rng.random() > probability:
            return None
        colour = pick(self.rng, tuple(COLOURS))
        return None if held_out(noun, colour) and not self.allow_unseen else colour

    def idle_path(self) -> Path:
        """Draw rest or a slow drift."""
        return Path.rest(self.frames) if self.rng.random() < 0.5 else drift_path(self.rng, self.frames)

    def place(
        self,
        noun: str,
        path: Path,
        size: float,
        clearance: float = 0.72,
        where: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        **traits: Any,
    ) -> Actor:
        """Add an actor whose whole path stays in the image and clear of the other actors. Raises NoRoomError.

        `where(x, y)` (T,) must be true on all frames; `traits` are further fields of `Actor`.
        """
        x, y = path.x + self.scene.camera[:, 0], path.y + self.scene.camera[:, 1]
        half = 0.42 * size * path.scale.max()
        low = np.array([half - x.min(), half - y.min()])
        high = np.array([SIDE - half - x.max(), SIDE - half - y.max()])
        if (low > high).any():
            raise NoRoomError
        if self.crowded:
            clearance *= 0.7
        for left, top in self.rng.uniform(low, high, (40, 2)):
            px, py = left + x, top + y
            if (where is None or where(px, py).all()) and self._is_clear(px, py, size * path.scale, clearance):
                return self._add(noun, px, py, path, size, **traits)
        raise NoRoomError

    def place_moving(
        self, noun: str, motion: str, size: float, colour: str | None, start: int = 0, stop: int | None = None
    ) -> Actor:
        """Add an actor that performs `motion` from frame `start` to `stop` (default: the end). Raises NoRoomError."""
        path = motion_path(self.rng, motion, self.frames, start, stop)
        clock = np.arange(self.frames)
        active = (clock >= start) & (clock < (self.frames if stop is None else stop))
        return self.place(noun, path, size, 0.8, colour=colour, motion=motion, active=active)

    def place_beside(
        self, anchor: Actor, noun: str, path: Path, size: float, distance: float, angle: float, **traits: Any
    ) -> Actor:
        """Add an actor at `distance` and `angle` from the anchor, with the anchor's path. Raises NoRoomError."""
        x, y = anchor.x + distance * np.cos(angle), anchor.y + distance * np.sin(angle)
        half = 0.42 * size
        inside = min(x.min(), y.min()) > half and max(x.max(), y.max()) < SIDE - half
        if not inside or not self._is_clear(x, y, np.full(self.frames, size), 0.72, ignore=anchor):
            raise NoRoomError
        return self._add(noun, x, y, path, size, **traits)

    def add_expression(
        self, actor: Actor, kind: str, attribute: str | None = None, anchor: Actor | None = None
    ) -> None:
        """Add a sentence of a kind about an actor."""
        colour, actors = None if kind == "colour" else actor.colour, self.scene.actors
        text = phrase(self.rng, kind, actor.noun, attribute, colour, anchor.noun if anchor else None)
        unseen = held_out(actor.noun, attribute) or held_out(actor.noun, actor.colour)
        anchor_index = actors.index(anchor) if anchor else None
        self.scene.expressions.append(Expression(text, actors.index(actor), kind, attribute, anchor_index, unseen))

    def _add(self, noun: str, x: np.ndarray, y: np.ndarray, path: Path, size: float, **traits: Any) -> Actor:
        traits.setdefault("flip", bool(self.rng.random() < 0.5))
        traits.setdefault("depth", float(self.rng.random()))
        angle = path.angle + self.rng.uniform(-14.0, 14.0)
        actor = Actor(noun, size, x, y, path.scale, angle, **traits)
        self.scene.actors.append(actor)
        return actor

    def _is_clear(
        self, x: np.ndarray, y: np.ndarray, size: np.ndarray, clearance: float, ignore: Actor | None = None
    ) -> bool:
        """Tell whether all other actors stay at least `clearance` away, in units of the sum of both half sizes."""
        others = (a for a in self.scene.actors if a is not ignore)
        return all((np.hypot(x - a.x, y - a.y) / (0.5 * (size + a.size * a.scale))).min() >= clearance for a in others)
