"""Random scenes whose sentences are unambiguous by construction.

A scene consists of contrast groups. Each group places two or three objects of one noun that differ in exactly one
respect (colour, size, position, neighbour, motion, how they cross the border, or what they do early or late in the
clip), adds the sentences for each, and leaves every other noun of the clip to other groups. `semantics.unambiguous`
then checks each sentence against the paths of all actors.
"""

from __future__ import annotations

import numpy as np

from .grammar import COLOURS, MOTIONS, pick
from .scene import SIDE, Actor, Path, Scene, border_path, motion_path
from .scene_builder import NoRoomError, SceneBuilder
from .semantics import unambiguous

STATIC = ("colour", "size", "position", "relation", "relation")
MOVING = ("motion", "border", "earlier", "later")


def generate_scene(
    rng: np.random.Generator, frames: int, allow_unseen: bool, kinds: tuple[str, ...] | None = None
) -> Scene:
    """Draw a scene of 3 to 6 actors. `kinds`: groups to draw from, default all that `frames` frames can show."""
    if kinds is None:
        kinds = STATIC if frames < 6 else (*STATIC, *MOVING, "motion", "motion", "earlier")
    while True:
        builder = SceneBuilder(rng, frames, allow_unseen)
        _add_groups(builder, kinds)
        scene = builder.scene
        scene.expressions = [e for e in scene.expressions if unambiguous(scene, e)]
        if len(scene.actors) >= 3 and scene.expressions:
            return scene


def _add_groups(builder: SceneBuilder, kinds: tuple[str, ...]) -> None:
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
        noun, (motion,) = b.noun_and_attributes(tuple(MOTIONS), 1)
        path = motion_path(b.rng, motion, b.frames)
    else:
        noun, motion, path = b.noun(), "still", b.idle_path()
    active = np.ones(b.frames, bool)
    b.add_expression(b.place(noun, path, b.size(), motion=motion, active=active, colour=b.colour(noun)), "noun")


def colour_group(b: SceneBuilder) -> None:
    """Add two or three of a noun in different colours, sometimes with another noun in the first colour."""
    noun, colours = b.noun_and_attributes(tuple(COLOURS), 3 if b.max_actors >= 5 and b.rng.random() < 0.3 else 2)
    size, path = b.size(), b.idle_path()
    actors = [b.place(noun, path, size * b.rng.uniform(0.9, 1.1), colour=c) for c in colours]
    # the colour alone must not identify the object
    if b.free > 0 and b.rng.random() < 0.6:
        other = b.noun(colours[0])
        b.add_expression(b.place(other, b.idle_path(), b.size(), colour=colours[0]), "noun")
    for actor in actors:
        b.add_expression(actor, "colour", actor.colour)


def size_group(b: SceneBuilder) -> None:
    """Add a big and a small one of a noun."""
    noun = b.noun()
    colour, big = b.colour(noun), b.rng.uniform(86, 110)
    path = b.idle_path()
    for attribute, size in (("big", big), ("small", big * b.rng.uniform(0.45, 0.6))):
        b.add_expression(b.place(noun, path, size, colour=colour), "size", attribute)


def position_group(b: SceneBuilder) -> None:
    """Add two of a noun, one always left of or above the other."""
    noun, size, path = b.noun(), b.size(54, 84), b.idle_path()
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
    noun, anchor_noun, path = b.noun(), b.noun(), b.idle_path()
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
    noun, motions = b.noun_and_attributes(tuple(MOTIONS), 2)
    if b.rng.random() < 0.35:
        motions[1] = "still"
    size, colour = b.size(), b.colour(noun, 0.2)
    for motion in motions:
        b.add_expression(b.place_moving(noun, motion, size, colour), "motion", motion)


def border_group(b: SceneBuilder) -> None:
    """Add two of a noun that cross the border of the image in different ways, or one that does not."""
    pairs = [("leave", "stay"), ("enter", "there")]
    if b.frames >= 12:
        pairs += [("return", "stay"), ("return", "gone")]
    noun, size = b.noun(), b.size()
    colour = b.colour(noun, 0.2)
    for border in pick(b.rng, pairs):
        if border in ("stay", "there"):
            actor = b.place(noun, b.idle_path(), size, clearance=0.85, colour=colour)
        else:
            actor = _place_crossing(b, noun, border, size, colour)
        actor.border = border
        b.add_expression(actor, "border", border)


def _place_crossing(b: SceneBuilder, noun: str, border: str, size: float, colour: str | None) -> Actor:
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
    stop = max(round(b.rng.uniform(0.4, 0.6) * b.frames), 3)
    actor = _place_mover_and_still(b, 0, stop)
    b.add_expression(actor, "earlier", actor.motion)


def later_group(b: SceneBuilder) -> None:
    """Add two of a noun that look alike until one of them starts to move, or until one of two moving ones stops."""
    middle = round(b.rng.uniform(0.35, 0.6) * b.frames)
    if b.rng.random() < 0.7:
        actor = _place_mover_and_still(b, middle, b.frames)
        b.add_expression(actor, "later", actor.motion)
        return
    noun, (motion,) = b.noun_and_attributes(tuple(MOTIONS), 1)
    size, colour = b.size(), b.colour(noun, 0.2)
    for stop in (max(middle, 3), b.frames):
        actor = b.place_moving(noun, motion, size, colour, 0, stop)
        if stop < b.frames:
            b.add_expression(actor, "later", "stop")


def _place_mover_and_still(b: SceneBuilder, start: int, stop: int) -> Actor:
    """Place an object that moves from `start` to `stop`, and a still one like it. Returns the moving one."""
    noun, (motion,) = b.noun_and_attributes(tuple(MOTIONS), 1)
    size, colour = b.size(), b.colour(noun, 0.2)
    actor = b.place_moving(noun, motion, size, colour, start, stop)
    b.place_moving(noun, "still", size, colour, start, stop)
    return actor


GROUPS = {
    "noun": noun_group,
    "colour": colour_group,
    "size": size_group,
    "position": position_group,
    "relation": relation_group,
    "motion": motion_group,
    "border": border_group,
    "earlier": earlier_group,
    "later": later_group,
}
