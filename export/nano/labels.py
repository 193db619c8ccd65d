"""Labels of the auxiliary heads: appearance classes and motion vectors of all actors of a clip, by instance id."""

from __future__ import annotations

import numpy as np

from .dataset import SyntheticClip
from .grammar import COLOURS, MOTIONS, NOUNS
from .scene import Actor

MAX_INSTANCES = 10
"""Rows of a label table; row 0 is the background, row i+1 actor i."""
BORDERS = ("leave", "return", "gone", "enter")
APPEARANCE_CLASSES = {"noun": len(NOUNS) + 1, "colour": len(COLOURS) + 2, "motion": 2 + 3 * len(MOTIONS) + len(BORDERS)}
"""Number of classes in each column of `appearance_labels`."""
TYPICAL_MOTION = (6.0, 6.0, 30.0, 0.08)
"""Unit of `motion_labels`: typical motion per frame to the right, down, in degrees, and in the logarithm of the
size."""


def appearance_labels(clip: SyntheticClip) -> np.ndarray:
    """Return (MAX_INSTANCES,3) int64 noun, colour and motion class of each instance: 0 for background, nouns from 1,
    colours and motions from 2 (1: none)."""
    table = np.zeros((MAX_INSTANCES, 3), np.int64)
    for i, actor in enumerate(clip.scene.actors, 1):
        colour = 1 if actor.colour is None else 2 + tuple(COLOURS).index(actor.colour)
        table[i] = NOUNS.index(actor.noun) + 1, colour, _motion_class(actor)
    return table


def motion_labels(clip: SyntheticClip) -> np.ndarray:
    """Return (T,MAX_INSTANCES,4) float32 motion of each instance to the next frame, relative to the camera, in
    `TYPICAL_MOTION`.

    The last frame repeats the motion before it. Background: 0.
    """
    table = np.zeros((len(clip.frames), MAX_INSTANCES, len(TYPICAL_MOTION)), np.float32)
    if len(clip.frames) == 1:
        return table
    for i, actor in enumerate(clip.scene.actors, 1):
        position = np.stack((actor.x, actor.y), 1) - clip.scene.camera
        steps = np.diff(np.column_stack((position, actor.angle, np.log(actor.scale))), axis=0)
        table[:, i] = np.concatenate((steps, steps[-1:])) / TYPICAL_MOTION
    return table.clip(-2, 2)


def _motion_class(actor: Actor) -> int:
    """Return the class of a motion that is permanent, early or late, or of a way across the border; 1: none."""
    if actor.border in BORDERS:
        return 2 + 3 * len(MOTIONS) + BORDERS.index(actor.border)
    if actor.motion == "still" or actor.active is None or not actor.active.any():
        return 1
    when = 0 if actor.active.all() else 1 if actor.active[0] else 2
    return 2 + 3 * tuple(MOTIONS).index(actor.motion) + when
