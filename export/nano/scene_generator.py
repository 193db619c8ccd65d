"""Scenes whose sentences are unambiguous by construction.

A scene is a handful of groups. Each group places two or three objects of one noun that differ in exactly one respect
(colour, size, place, neighbour, motion, how they cross the border, or what they do early or late in the clip), gives the
words for each, and leaves every other noun of the clip to other groups. `semantics.holds` then checks each sentence
against the paths of all actors.
"""

from __future__ import annotations

import numpy as np

from .grammar import COLOURS, MOTIONS, NOUN_NAMES, held_out, phrase, pick
from .scene import SIDE, Actor, Expression, Path, Scene, camera, crossing, drift, motion
from .semantics import unambiguous

STATIC = ("colour", "size", "position", "relation", "relation")
MOVING = ("motion", "border", "earlier", "later")


class SceneBuilder:
    """Fills one scene. `allow_unseen`: held-out pairs may occur (test only)."""

    def __init__(self, rng: np.random.Generator, frames: int, allow_unseen: bool) -> None:
        self.rng, self.frames, self.allow_unseen = rng, frames, allow_unseen
        self.scene = Scene(frames, camera(rng, frames))
        self.room = int(rng.integers(3, 7))
        self.crowded = rng.random() < 0.4
        # in the test split, part of the scenes ask for pairs that training never showed
        self.want_unseen = allow_unseen and rng.random() < 0.35
        self.nouns = [NOUN_NAMES[i] for i in rng.permutation(len(NOUN_NAMES))]
        self.tilt = 14.0

    # ---- choosing -------------------------------------------------------------------------------------------------

    def noun(self, *attributes: str) -> str:
        """A noun not used yet for which all `attributes` may be shown."""
        for i, noun in enumerate(self.nouns):
            if self.allow_unseen or not any(held_out(noun, a) for a in attributes):
                return self.nouns.pop(i)
        raise LookupError

    def noun_and(self, options: tuple[str, ...], count: int) -> tuple[str, list[str]]:
        """A noun and `count` different attributes for it; the first is a held-out one where unseen pairs are wanted."""
        noun = self.noun()
        good = [a for a in options if self.allow_unseen or not held_out(noun, a)]
        order = [good[i] for i in self.rng.permutation(len(good))]
        if self.want_unseen:
            order.sort(key=lambda a: not held_out(noun, a))
        return noun, order[:count]

    def size(self, low: float = 58, high: float = 96) -> float:
        return float(self.rng.uniform(low, high) * (0.9 if self.room > 5 else 1.0))

    # ---- placing --------------------------------------------------------------------------------------------------

    def place(self, noun: str, path: Path, size: float, clearance: float = 0.72, where=None, **traits) -> Actor:
        """Put an actor where its whole path stays in the picture and clear of the others. Raises LookupError if nowhere."""
        rng, shift = self.rng, self.scene.camera
        x, y = path.x + shift[:, 0], path.y + shift[:, 1]
        half = 0.42 * size * path.scale.max()
        low = np.array([half - x.min(), half - y.min()])
        high = np.array([SIDE - half - x.max(), SIDE - half - y.max()])
        if (low > high).any():
            raise LookupError
        if self.crowded:
            clearance *= 0.7
        for point in rng.uniform(low, high, (40, 2)):
            px, py = point[0] + x, point[1] + y
            if where is not None and not where(px, py):
                continue
            if all(_gap(px, py, size * path.scale, other) >= clearance for other in self.scene.actors):
                return self.add(noun, px, py, path, size, **traits)
        raise LookupError

    def add(self, noun: str, x: np.ndarray, y: np.ndarray, path: Path, size: float, **traits) -> Actor:
        traits.setdefault("flip", bool(self.rng.random() < 0.5))
        traits.setdefault("depth", float(self.rng.random()))
        angle = path.angle + self.rng.uniform(-self.tilt, self.tilt)
        actor = Actor(noun, size, x, y, path.scale, angle, **traits)
        self.scene.actors.append(actor)
        return actor

    def say(self, actor: Actor, kind: str, attribute: str | None = None, anchor: Actor | None = None) -> None:
        index = next(i for i, a in enumerate(self.scene.actors) if a is actor)
        text = phrase(
            self.rng,
            kind,
            actor.noun,
            attribute,
            None if kind == "colour" else actor.colour,
            anchor.noun if anchor else None,
        )
        at = next((i for i, a in enumerate(self.scene.actors) if a is anchor), None)
        unseen = held_out(actor.noun, attribute) or held_out(actor.noun, actor.colour)
        self.scene.expressions.append(Expression(text, index, kind, attribute, at, unseen))

    def colour(self, noun: str, part: float = 0.35) -> str | None:
        if self.rng.random() > part:
            return None
        colour = pick(self.rng, tuple(COLOURS))
        return None if held_out(noun, colour) and not self.allow_unseen else colour

    def calm(self) -> Path:
        """A motion that does not matter: rest or slow drift."""
        return Path.rest(self.frames) if self.rng.random() < 0.5 else drift(self.rng, self.frames)

    # ---- groups: each adds actors and the sentences that tell them apart --------------------------------------------

    def noun_group(self) -> None:
        rng = self.rng
        if self.frames > 1 and rng.random() < 0.35:
            noun, (move,) = self.noun_and(tuple(MOTIONS), 1)
            path = motion(rng, move, self.frames)
        else:
            noun, move, path = self.noun(), "still", self.calm()
        actor = self.place(
            noun, path, self.size(), move=move, active=np.ones(self.frames, bool), colour=self.colour(noun)
        )
        self.say(actor, "noun")

    def colour_group(self) -> None:
        noun, colours = self.noun_and(tuple(COLOURS), 3 if self.room >= 5 and self.rng.random() < 0.3 else 2)
        size, path = self.size(), self.calm()
        actors = [self.place(noun, path, size * self.rng.uniform(0.9, 1.1), colour=c) for c in colours]
        # the colour alone must not do: another noun wears it too
        if self.room > len(self.scene.actors) and self.rng.random() < 0.6:
            other = self.noun(colours[0])
            self.say(self.place(other, self.calm(), self.size(), colour=colours[0]), "noun")
        for actor in actors:
            self.say(actor, "colour", actor.colour)

    def size_group(self) -> None:
        noun = self.noun()
        colour, big = self.colour(noun), self.rng.uniform(86, 110)
        path = self.calm()
        for attribute, size in (("big", big), ("small", big * self.rng.uniform(0.45, 0.6))):
            self.say(self.place(noun, path, size, colour=colour), "size", attribute)

    def position_group(self) -> None:
        noun, size, path = self.noun(), self.size(54, 84), self.calm()
        colour, apart = self.colour(noun), self.rng.uniform(70, 110)
        first = self.place(noun, path, size, colour=colour)
        horizontal = self.rng.random() < 0.5

        def where(x: np.ndarray, y: np.ndarray) -> bool:
            along = x - first.x if horizontal else y - first.y
            return bool((np.abs(along) > min(apart, 90)).all())

        second = self.place(noun, path, size * self.rng.uniform(0.92, 1.08), where=where, colour=colour)
        low, high = ("left", "right") if horizontal else ("top", "bottom")
        ahead = first.x[0] < second.x[0] if horizontal else first.y[0] < second.y[0]
        self.say(first, "position", low if ahead else high)
        self.say(second, "position", high if ahead else low)

    def relation_group(self) -> None:
        """Two of a noun around or away from one anchor, all on the same path."""
        rng, size = self.rng, self.size(50, 66)
        noun, anchor_noun, path = self.noun(), self.noun(), self.calm()
        big, colour = self.size(60, 84), self.colour(noun)
        kind = pick(rng, ("next to", "sides", "sides", "depth"))
        reach = 0.5 * (size + big)
        anchor = self.place(anchor_noun, path, big, colour=self.colour(anchor_noun), depth=0.5)
        self.say(anchor, "noun")
        if kind == "next to":
            near = self._beside(anchor, noun, path, size, reach * 0.95, rng.uniform(0, 2 * np.pi), colour=colour)
            self.say(near, "relation", "next to", anchor)
            limit = 1.7 * reach
            self.place(
                noun,
                path,
                size,
                colour=colour,
                where=lambda x, y: bool((np.hypot(x - anchor.x, y - anchor.y) > limit).all()),
            )
            return
        names = ("left of", "right of") if rng.random() < 0.5 else ("above", "below")
        angle = np.pi if names[0] == "left of" else -np.pi / 2
        distance = reach * (0.98 if kind == "sides" else 0.52)
        angle += rng.uniform(-0.35, 0.35) if kind == "sides" else rng.uniform(-0.9, 0.9)
        depths = ("behind", "in front of") if rng.random() < 0.5 else ("in front of", "behind")
        for side in range(2):
            depth = {"behind": 0.2, "in front of": 0.8}[depths[side]] if kind == "depth" else rng.uniform(0, 1)
            actor = self._beside(anchor, noun, path, size, distance, angle + np.pi * side, colour=colour, depth=depth)
            self.say(actor, "relation", depths[side] if kind == "depth" else names[side], anchor)

    def _beside(
        self, anchor: Actor, noun: str, path: Path, size: float, distance: float, angle: float, **traits
    ) -> Actor:
        x, y = anchor.x + distance * np.cos(angle), anchor.y + distance * np.sin(angle)
        half = 0.42 * size
        inside = x.min() > half and y.min() > half and x.max() < SIDE - half and y.max() < SIDE - half
        others = [a for a in self.scene.actors if a is not anchor]
        if not inside or any(_gap(x, y, np.full(self.frames, size), a) < 0.72 for a in others):
            raise LookupError
        return self.add(noun, x, y, path, size, **traits)

    def motion_group(self) -> None:
        noun, moves = self.noun_and(tuple(MOTIONS), 2)
        if self.rng.random() < 0.35:
            moves[1] = "still"
        size, colour = self.size(), self.colour(noun, 0.2)
        for move in moves:
            path = motion(self.rng, move, self.frames)
            actor = self.place(
                noun, path, size, clearance=0.8, colour=colour, move=move, active=np.ones(self.frames, bool)
            )
            self.say(actor, "motion", move)

    def border_group(self) -> None:
        pairs = [("leave", "stay"), ("enter", "there")]
        if self.frames >= 12:
            pairs += [("return", "stay"), ("return", "gone")]
        noun, size = self.noun(), self.size()
        colour = self.colour(noun, 0.2)
        for border in pick(self.rng, pairs):
            if border in ("stay", "there"):
                actor = self.place(noun, self.calm(), size, clearance=0.85, colour=colour)
            else:
                actor = self._cross(noun, border, size, colour)
            actor.border = border
            self.say(actor, "border", border)

    def _cross(self, noun: str, border: str, size: float, colour: str | None) -> Actor:
        path, _out = crossing(self.rng, border, self.frames)
        actor = self.place(noun, Path.rest(self.frames), size, clearance=0.85, colour=colour)
        # from its place inside straight over the edge on its side
        for name in ("x", "y"):
            direction, here = getattr(path, name), getattr(actor, name)
            edge = SIDE - here if direction.sum() > 0 else here
            setattr(actor, name, here + direction * (edge + 0.75 * size))
        return actor

    def _timed_pair(self, moves: tuple[str, str], start: int, stop: int) -> list[Actor]:
        noun, chosen = self.noun_and(tuple(MOTIONS), 1)
        names = [chosen[0] if m == "any" else m for m in moves]
        size, colour, actors = self.size(), self.colour(noun, 0.2), []
        for move in names:
            path = motion(self.rng, move, self.frames, start, stop)
            active = (np.arange(self.frames) >= start) & (np.arange(self.frames) < stop)
            actors.append(self.place(noun, path, size, clearance=0.8, colour=colour, move=move, active=active))
        return actors

    def earlier_group(self) -> None:
        """Told apart by what one did before it came to rest beside the other, which never moved."""
        stop = round(self.rng.uniform(0.4, 0.6) * self.frames)
        actor, _ = self._timed_pair(("any", "still"), 0, max(stop, 3))
        self.say(actor, "earlier", actor.move)

    def later_group(self) -> None:
        """Alike until one starts to move, or until one of two movers stops."""
        start = round(self.rng.uniform(0.35, 0.6) * self.frames)
        if self.rng.random() < 0.7:
            actor, _ = self._timed_pair(("any", "still"), start, self.frames)
            self.say(actor, "later", actor.move)
            return
        noun, (move,) = self.noun_and(tuple(MOTIONS), 1)
        size, colour = self.size(), self.colour(noun, 0.2)
        for stop in (max(start, 3), self.frames):
            active = np.arange(self.frames) < stop
            actor = self.place(
                noun,
                motion(self.rng, move, self.frames, 0, stop),
                size,
                clearance=0.8,
                colour=colour,
                move=move,
                active=active,
            )
            if stop < self.frames:
                self.say(actor, "later", "stop")


def _gap(x: np.ndarray, y: np.ndarray, size: np.ndarray, other: Actor) -> float:
    """Smallest distance of two actors over the clip, in units of the sum of their half sizes."""
    return float((np.hypot(x - other.x, y - other.y) / (0.5 * (size + other.size * other.scale))).min())


def build(rng: np.random.Generator, frames: int, allow_unseen: bool, kinds: tuple[str, ...] | None = None) -> Scene:
    """A scene of 3 to 6 actors. `kinds`: groups to draw from, default all that `frames` frames can show."""
    if kinds is None:
        kinds = STATIC if frames < 6 else (*STATIC, *MOVING, "motion", "motion", "earlier")
    while True:
        builder = SceneBuilder(rng, frames, allow_unseen)
        _fill(builder, kinds)
        scene = builder.scene
        scene.expressions = [e for e in scene.expressions if unambiguous(scene, e)]
        if len(scene.actors) >= 3 and scene.expressions:
            return scene


def _fill(builder: SceneBuilder, kinds: tuple[str, ...]) -> None:
    for _ in range(8):
        free = builder.room - len(builder.scene.actors)
        if free <= 0:
            return
        kind = pick(builder.rng, kinds) if free >= 2 and builder.rng.random() < 0.8 else "noun"
        actors, said = len(builder.scene.actors), len(builder.scene.expressions)
        try:
            getattr(builder, f"{kind}_group")()
            if len(builder.scene.actors) > builder.room:
                raise LookupError
        except LookupError:  # no room: the scene stays as it was before this group
            del builder.scene.actors[actors:], builder.scene.expressions[said:]
