"""Meaning of sentences, decided from the paths of the actors alone.

The contrast groups of `scene_generator` intend each sentence to fit exactly one actor. This module verifies it, with
thresholds that leave a gap between "does" and "does not"; a sentence that fits no actor or several is dropped.
"""

from __future__ import annotations

import numpy as np

from .scene import SIDE, Actor, Expression, Scene


def unambiguous(scene: Scene, expression: Expression) -> bool:
    """Tell whether the expression fits its target and no other actor."""
    return [i for i, actor in enumerate(scene.actors) if matches(scene, expression, actor)] == [expression.target]


def matches(scene: Scene, expression: Expression, actor: Actor) -> bool:
    """Tell whether the expression fits this actor; true in doubtful cases."""
    if actor.noun != scene.actors[expression.target].noun:
        return False
    rivals = [a for a in scene.actors if a.noun == actor.noun and a is not actor]
    kind, attribute = expression.kind, expression.attribute
    if kind == "noun":
        return True
    if kind == "colour":
        return actor.colour == attribute
    if kind == "size":
        return all(_larger(actor, a) if attribute == "big" else _larger(a, actor) for a in rivals)
    if kind == "position":
        return all(_beyond(actor, a, attribute) for a in rivals)
    if kind == "relation":
        return _related(actor, scene.actors[expression.anchor], attribute)
    if kind == "border":
        return _crosses(actor, attribute)
    return _performs(scene, actor, kind, attribute)


def _larger(actor: Actor, other: Actor) -> bool:
    return bool(np.all(actor.extent > 1.15 * other.extent))


def _beyond(actor: Actor, other: Actor, side: str) -> bool:
    a, b = (actor.x, other.x) if side in ("left", "right") else (actor.y, other.y)
    return bool(np.all(a < b) if side in ("left", "top") else np.all(a > b))


def _related(actor: Actor, anchor: Actor, relation: str) -> bool:
    dx, dy = actor.x - anchor.x, actor.y - anchor.y
    near = (np.hypot(dx, dy) / (0.5 * (actor.extent + anchor.extent))).min()
    if relation == "next to":
        return bool(near < 1.4)
    if relation in ("behind", "in front of"):
        return bool(near < 0.8 and (actor.depth < anchor.depth) == (relation == "behind"))
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    sign = -1 if relation in ("left of", "above") else 1
    return bool((sign * along > 0.5 * np.abs(across)).any())


def _crosses(actor: Actor, border: str) -> bool:
    x, y, half = actor.x, actor.y, 0.5 * actor.extent
    inside = (x > -half) & (x < SIDE + half) & (y > -half) & (y < SIDE + half)
    first, last, always = inside[0], inside[-1], inside.all()
    verdicts = {"leave": first and not always, "gone": first and not last, "return": first and last and not always}
    verdicts |= {"enter": not first and last, "stay": always, "there": first}
    return bool(verdicts[border])


def _performs(scene: Scene, actor: Actor, kind: str, attribute: str) -> bool:
    """Tell whether the actor does so: in the clip (motion), only in its first part (earlier), or second (later)."""
    does, frames = visible_motions(scene, actor), scene.frames
    if kind == "motion":
        return attribute in does if attribute != "still" else not does
    moving = np.flatnonzero(_moving_steps(scene, actor))
    if not len(moving) or attribute not in {*does, "stop"}:
        return False
    if attribute == "stop":
        return bool(moving[-1] < 0.8 * frames)
    return bool(moving[0] >= 0.25 * frames) if kind == "later" else bool(moving[0] <= 1 and moving[-1] < 0.8 * frames)


def _moving_steps(scene: Scene, actor: Actor) -> np.ndarray:
    """Return (T-1,) whether the actor changes, relative to the camera, from one frame to the next."""
    x, y = actor.x - scene.camera[:, 0], actor.y - scene.camera[:, 1]
    step = np.hypot(np.diff(x), np.diff(y)) > 1.6
    return step | (np.abs(np.diff(actor.angle)) > 3) | (np.abs(np.diff(np.log(actor.scale))) > 0.01)


def visible_motions(scene: Scene, actor: Actor) -> set[str]:
    """Return the motions that a viewer recognises in the path of the actor over the whole clip."""
    x, y = actor.x - scene.camera[:, 0], actor.y - scene.camera[:, 1]
    dx, dy, turn = x[-1] - x[0], y[-1] - y[0], np.abs(actor.angle[-1] - actor.angle[0])
    growth, seen = actor.scale[-1] / actor.scale[0], set()
    if np.ptp(x) > 12 and np.ptp(y) > 12 and np.hypot(np.diff(x), np.diff(y)).sum() > 2 * np.hypot(dx, dy):
        seen.add("roam")
    elif np.abs(np.diff(y, 2)).max(initial=0) > 6:
        seen.add("bounce")
    else:
        if abs(dx) > 20:
            seen.add("right" if dx > 0 else "left")
        if abs(dy) > 20:
            seen.add("down" if dy > 0 else "up")
    if turn > 60 and np.ptp(actor.angle) < 1.05 * turn + 1:
        seen.add("spin")
    elif np.ptp(actor.angle) > 10:
        seen.add("wobble")
    if growth > 1.2 or growth < 1 / 1.2:
        seen.add("grow" if growth > 1 else "shrink")
    return seen
