"""Random scenes whose sentences are unambiguous by construction.

A scene consists of contrast groups. Each group places two or three objects of one noun that differ in exactly one
respect (colour, size, position, neighbour, motion, how they cross the border, or what they do early or late in the
clip), adds the sentences for each, and leaves every other noun of the clip to other groups. `semantics.unambiguous`
then checks each sentence against the paths of all actors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator

from .grammar import COLOURS, MOTIONS, NOUNS, held_out, phrase, pick
from .scene import SIDE, Actor, Expression, Path, Scene, border_path, camera_path, idle_path, motion_path
from .semantics import unambiguous

STATIC = ("colour", "size", "position", "relation", "relation")
MOVING = ("motion", "border", "earlier", "later")

Where = Callable[[np.ndarray, np.ndarray], np.ndarray]


class NoRoomError(LookupError):
    """A scene has no position for an actor, or no noun left."""


class SceneBuilder:
    """Places actors and words sentences in one scene. `allow_unseen`: held-out pairs may occur (test split only)."""

    def __init__(self, rng: Generator, frames: int, allow_unseen: bool) -> None:
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

    def noun(self, attribute: str = "") -> str:
        """Take an unused noun that may be shown with the attribute. Raises NoRoomError."""
        for i, noun in enumerate(self.unused_nouns):
            if self.allow_unseen or not held_out(noun, attribute):
                return self.unused_nouns.pop(i)
        raise NoRoomError

    def noun_and_attributes(self, options: tuple[str, ...], count: int = 1) -> tuple[str, list[str]]:
        """Take an unused noun and different attributes for it; held-out ones come first if they are preferred."""
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

    def idle(self) -> Path:
        return idle_path(self.rng, self.frames)

    def place(
        self, noun: str, path: Path, size: float, clearance: float = 0.72, where: Where | None = None, **traits: Any
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
        clearance *= 0.7 if self.crowded else 1.0
        for left, top in self.rng.uniform(low, high, (40, 2)):
            px, py = left + x, top + y
            if (where is None or where(px, py).all()) and self._is_clear(px, py, size * path.scale, clearance):
                return self._add(noun, px, py, path, size, **traits)
        raise NoRoomError

    def place_moving(self, noun: str, motion: str, size: float, colour: str | None, start: int, stop: int) -> Actor:
        """Add an actor that performs `motion` from frame `start` to `stop`. Raises NoRoomError."""
        path, clock = motion_path(self.rng, motion, self.frames, start, stop), np.arange(self.frames)
        active = (clock >= start) & (clock < stop)
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

    def add_expression(self, actor: Actor, kind: str, attribute: str = "", anchor: Actor | None = None) -> None:
        """Add a sentence of a kind about an actor."""
        colour, actors = None if kind == "colour" else actor.colour, self.scene.actors
        text = phrase(self.rng, kind, actor.noun, attribute, colour, anchor.noun if anchor else "")
        unseen = held_out(actor.noun, attribute) or held_out(actor.noun, actor.colour)
        anchor_index = actors.index(anchor) if anchor else -1
        self.scene.expressions.append(Expression(text, actors.index(actor), kind, attribute, anchor_index, unseen))

    def _add(self, noun: str, x: np.ndarray, y: np.ndarray, path: Path, size: float, **traits: Any) -> Actor:
        traits.setdefault("flip", bool(self.rng.random() < 0.5))
        traits.setdefault("depth", float(self.rng.random()))
        angle = path.angle + self.rng.uniform(-14.0, 14.0)
        actor = Actor(noun, size, x, y, path.scale, angle, **traits)
        self.scene.actors.append(actor)
        return actor

    def _is_clear(
        self, x: np.ndarray, y: np.ndarray, extent: np.ndarray, clearance: float, ignore: Actor | None = None
    ) -> bool:
        """Tell whether all other actors stay at least `clearance` away, in units of the sum of both half sizes."""
        others = (a for a in self.scene.actors if a is not ignore)
        return all((np.hypot(x - a.x, y - a.y) / (0.5 * (extent + a.extent))).min() >= clearance for a in others)


def generate_scene(rng: Generator, frames: int, allow_unseen: bool, kinds: tuple[str, ...] | None = None) -> Scene:
    """Draw a scene of 3 to 6 actors. `kinds`: groups to draw from, default all that `frames` frames can show."""
    if kinds is None:
        kinds = STATIC if frames < 6 else (*STATIC, *MOVING, "motion", "motion", "earlier")
    while True:
        builder = SceneBuilder(rng, frames, allow_unseen)
        add_groups(builder, kinds)
        scene = builder.scene
        scene.expressions = [e for e in scene.expressions if unambiguous(scene, e)]
        if len(scene.actors) >= 3 and scene.expressions:
            return scene


def add_groups(builder: SceneBuilder, kinds: tuple[str, ...]) -> None:
    """Add groups of these kinds while there is room."""
    scene = builder.scene
    for _ in range(8):
        if builder.free <= 0:
            return
        kind = pick(builder.rng, kinds) if builder.free >= 2 and builder.rng.random() < 0.8 else "noun"
        actors, expressions = len(scene.actors), len(scene.expressions)
        try:
            GROUPS[kind](builder)
            if builder.free < 0:
                raise NoRoomError
        except NoRoomError:  # the scene stays as it was before this group
            del scene.actors[actors:], scene.expressions[expressions:]


def noun_group(b: SceneBuilder) -> None:
    """Add one object, moving or not, that its noun alone identifies."""
    if b.frames > 1 and b.rng.random() < 0.35:
        noun, (motion,) = b.noun_and_attributes(MOTIONS)
        path = motion_path(b.rng, motion, b.frames)
    else:
        noun, motion, path = b.noun(), "still", b.idle()
    active = np.ones(b.frames, bool)
    b.add_expression(b.place(noun, path, b.size(), motion=motion, active=active, colour=b.colour(noun)), "noun")


def colour_group(b: SceneBuilder) -> None:
    """Add two or three of a noun in different colours, sometimes with another noun in the first colour."""
    noun, colours = b.noun_and_attributes(tuple(COLOURS), 3 if b.max_actors >= 5 and b.rng.random() < 0.3 else 2)
    size, path = b.size(), b.idle()
    actors = [b.place(noun, path, size * b.rng.uniform(0.9, 1.1), colour=c) for c in colours]
    # the colour alone must not identify the object
    if b.free > 0 and b.rng.random() < 0.6:
        other = b.noun(colours[0])
        b.add_expression(b.place(other, b.idle(), b.size(), colour=colours[0]), "noun")
    for actor, colour in zip(actors, colours, strict=True):
        b.add_expression(actor, "colour", colour)


def size_group(b: SceneBuilder) -> None:
    """Add a big and a small one of a noun."""
    noun = b.noun()
    colour, big = b.colour(noun), b.rng.uniform(86, 110)
    path = b.idle()
    for attribute, size in (("big", big), ("small", big * b.rng.uniform(0.45, 0.6))):
        b.add_expression(b.place(noun, path, size, colour=colour), "size", attribute)


def position_group(b: SceneBuilder) -> None:
    """Add two of a noun, one always left of or above the other."""
    noun, size, path = b.noun(), b.size(54, 84), b.idle()
    colour, distance = b.colour(noun), b.rng.uniform(70, 110)
    first = b.place(noun, path, size, colour=colour)
    horizontal = b.rng.random() < 0.5

    def apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.abs(x - first.x if horizontal else y - first.y) > min(distance, 90)

    second = b.place(noun, path, size * b.rng.uniform(0.92, 1.08), where=apart, colour=colour)
    low, high = ("left", "right") if horizontal else ("top", "bottom")
    first_is_low = first.x[0] < second.x[0] if horizontal else first.y[0] < second.y[0]
    b.add_expression(first, "position", low if first_is_low else high)
    b.add_expression(second, "position", high if first_is_low else low)


def relation_group(b: SceneBuilder) -> None:
    """Add two of a noun around or away from one anchor of another noun, all on the same path."""
    rng, size = b.rng, b.size(50, 66)
    noun, anchor_noun, path = b.noun(), b.noun(), b.idle()
    anchor_size, colour = b.size(60, 84), b.colour(noun)
    kind = pick(rng, ("next to", "sides", "sides", "depth"))
    reach = 0.5 * (size + anchor_size)
    anchor = b.place(anchor_noun, path, anchor_size, colour=b.colour(anchor_noun), depth=0.5)
    b.add_expression(anchor, "noun")
    if kind == "next to":
        near = b.place_beside(anchor, noun, path, size, reach * 0.95, rng.uniform(0, 2 * np.pi), colour=colour)
        b.add_expression(near, "relation", "next to", anchor)
        far = 1.7 * reach
        b.place(noun, path, size, where=lambda x, y: np.hypot(x - anchor.x, y - anchor.y) > far, colour=colour)
        return
    names = ("left of", "right of") if rng.random() < 0.5 else ("above", "below")
    angle = np.pi if names[0] == "left of" else -np.pi / 2
    distance = reach * (0.98 if kind == "sides" else 0.52)
    angle += rng.uniform(-0.35, 0.35) if kind == "sides" else rng.uniform(-0.9, 0.9)
    depths = ("behind", "in front of") if rng.random() < 0.5 else ("in front of", "behind")
    for i in range(2):
        depth = {"behind": 0.2, "in front of": 0.8}[depths[i]] if kind == "depth" else rng.uniform(0, 1)
        actor = b.place_beside(anchor, noun, path, size, distance, angle + np.pi * i, colour=colour, depth=depth)
        b.add_expression(actor, "relation", depths[i] if kind == "depth" else names[i], anchor)


def motion_group(b: SceneBuilder) -> None:
    """Add two of a noun with different motions, or one of them still."""
    noun, motions = b.noun_and_attributes(MOTIONS, 2)
    if b.rng.random() < 0.35:
        motions[1] = "still"
    size, colour = b.size(), b.colour(noun, 0.2)
    for motion in motions:
        b.add_expression(b.place_moving(noun, motion, size, colour, 0, b.frames), "motion", motion)


def border_group(b: SceneBuilder) -> None:
    """Add two of a noun that cross the border of the image in different ways, or one that does not."""
    pairs = [("leave", "stay"), ("enter", "there")]
    if b.frames >= 12:
        pairs += [("return", "stay"), ("return", "gone")]
    noun, size = b.noun(), b.size()
    colour = b.colour(noun, 0.2)
    for border in pick(b.rng, pairs):
        if border in ("stay", "there"):
            actor = b.place(noun, b.idle(), size, clearance=0.85, colour=colour)
        else:
            actor = place_crossing(b, noun, border, size, colour)
        actor.border = border
        b.add_expression(actor, "border", border)


def place_crossing(b: SceneBuilder, noun: str, border: str, size: float, colour: str | None) -> Actor:
    """Add an actor that crosses the border of the image. Raises NoRoomError."""
    path = border_path(b.rng, border, b.frames)
    actor = b.place(noun, Path.rest(b.frames), size, clearance=0.85, colour=colour)
    # from its position inside straight across the edge on its side
    for axis in ("x", "y"):
        direction, position = getattr(path, axis), getattr(actor, axis)
        edge = SIDE - position if direction.sum() > 0 else position
        setattr(actor, axis, position + direction * (edge + 0.75 * size))
    return actor


def earlier_group(b: SceneBuilder) -> None:
    """Add two of a noun, one of which moves at first and then comes to rest; the other never moves."""
    _add_mover_and_still(b, "earlier", 0, max(round(b.rng.uniform(0.4, 0.6) * b.frames), 3))


def later_group(b: SceneBuilder) -> None:
    """Add two of a noun that look alike until one of them starts to move, or until one of two moving ones stops."""
    middle = round(b.rng.uniform(0.35, 0.6) * b.frames)
    if b.rng.random() < 0.7:
        return _add_mover_and_still(b, "later", middle, b.frames)
    noun, (motion,) = b.noun_and_attributes(MOTIONS)
    size, colour = b.size(), b.colour(noun, 0.2)
    for stop in (max(middle, 3), b.frames):
        actor = b.place_moving(noun, motion, size, colour, 0, stop)
        if stop < b.frames:
            b.add_expression(actor, "later", "stop")


def _add_mover_and_still(b: SceneBuilder, kind: str, start: int, stop: int) -> None:
    """Add an object that moves from `start` to `stop`, with a sentence, and a still one like it."""
    noun, (motion,) = b.noun_and_attributes(MOTIONS)
    size, colour = b.size(), b.colour(noun, 0.2)
    actor, _ = (b.place_moving(noun, what, size, colour, start, stop) for what in (motion, "still"))
    b.add_expression(actor, kind, motion)


_FUNCTIONS = (noun_group, colour_group, size_group, position_group, relation_group, motion_group, border_group)
GROUPS = {f.__name__.removesuffix("_group"): f for f in (*_FUNCTIONS, earlier_group, later_group)}
