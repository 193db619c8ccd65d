"""Clips for concepts, and the concepts that can be asked about them.

    clip = concept_clip(SyntheticDataset(), "test", 7, frames=24)
    for concept in concepts(clip): concept.text, concept.actors

A scene shows a group of one noun, often with both distractors of a concept: the same noun in another colour, and
another noun in the same colour. A concept is a noun, a colour and a noun, or a size and a noun; `actors` are all
objects that it fits, none for one that is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from .dataset import SPLITS, SyntheticClip, SyntheticDataset, clean_instance_map
from .grammar import COLOURS, NOUNS, concept_phrase, held_out, pick
from .scene import Actor, Path, Scene, motion_path
from .scene_generator import MOVING, STATIC, NoRoomError, SceneBuilder, add_groups, place_crossing

SMALL, NOT_SMALL = 52.0, 66.0
"""Sides in units of 256: an object is small up to the first, not small from the second, unclear between them."""

BIG, NOT_BIG = 84.0, 70.0

SIZES: dict[str, Callable[[np.ndarray], bool | None]] = {
    "small": lambda extent: True if extent.max() <= SMALL else False if extent.min() >= NOT_SMALL else None,
    "big": lambda extent: True if extent.min() >= BIG else False if extent.max() <= NOT_BIG else None,
}
"""Size -> whether an object of sides (T,) has it; None in doubtful cases."""

MAX_ACTORS = 8


@dataclass(frozen=True, slots=True)
class ConceptQuery:
    """A concept and all actors of a clip that it fits. `kind`: noun, colour, size, or absent (with why it is):
    `other noun`, `other colour` (the noun is there), `other size`."""

    text: str
    actors: tuple[int, ...]
    kind: str


def concept_clip(
    dataset: SyntheticDataset, split: str, seed: int, frames: int, shown: Sequence[int] | None = None
) -> SyntheticClip:
    """Draw clip number `seed` of a split. `shown`: render only these of its frames."""
    rng = np.random.default_rng([SPLITS[split], seed, frames, 3])
    scene = concept_scene(rng, frames, split == "test")
    if shown is not None:
        scene = _with_frames(scene, shown)
    pixels, instance_map, areas = dataset.renderer.render(scene, rng)
    clean_instance_map(instance_map, areas)
    return SyntheticClip(pixels, instance_map, areas, scene)


def _with_frames(scene: Scene, shown: Sequence[int]) -> Scene:
    index = list(shown)
    actors = [
        replace(a, x=a.x[index], y=a.y[index], scale=a.scale[index], angle=a.angle[index], active=None)
        for a in scene.actors
    ]
    return replace(scene, frames=len(index), camera=scene.camera[index], actors=actors)


def concept_scene(rng: Generator, frames: int, allow_unseen: bool) -> Scene:
    """Draw a scene: a group of one noun, its distractors, and what room is left for."""
    while True:
        builder = SceneBuilder(rng, frames, allow_unseen)
        builder.max_actors = int(rng.integers(2, MAX_ACTORS + 1))
        try:
            _add_crowd(builder)
            add_groups(builder, STATIC if frames < 6 else (*STATIC, *MOVING))
        except NoRoomError:
            continue
        return builder.scene


def _add_crowd(b: SceneBuilder) -> None:
    """Add one to four of a noun, and those that look like them: in other colours, or of other nouns."""
    rng = b.rng
    noun, colours = b.noun_and_attributes(tuple(COLOURS), 2)
    colour = colours[0] if rng.random() < 0.75 else None
    _place(b, noun, colour)
    for _ in range(int(rng.integers(0, 4))):
        _try(b, noun, colour)
    if colour and rng.random() < 0.65:
        for _ in range(int(rng.integers(1, 3))):
            _try(b, noun, colours[1])
    if colour and rng.random() < 0.65:
        other = b.noun(colour)
        for _ in range(int(rng.integers(1, 3))):
            _try(b, other, colour)


def _try(b: SceneBuilder, noun: str, colour: str | None) -> None:
    if b.free > 0:
        try:
            _place(b, noun, colour)
        except NoRoomError:
            return


def _place(b: SceneBuilder, noun: str, colour: str | None) -> Actor:
    """Add an object at rest, in motion or across the border, of any size."""
    rng, size = b.rng, float(b.rng.uniform(38, 105) * (0.85 if b.max_actors > 5 else 1.0))
    way = rng.random()
    if b.frames > 1 and way < 0.25:
        return place_crossing(b, noun, pick(rng, ("leave", "enter", "return")), size, colour)
    path: Path = b.idle()
    if b.frames > 1 and way < 0.65:
        path = motion_path(rng, pick(rng, ("left", "right", "up", "down", "spin", "bounce")), b.frames)
    return b.place(noun, path, size, clearance=0.8, colour=colour)


def concepts(clip: SyntheticClip, allow_unseen: bool = True) -> list[ConceptQuery]:
    """List the concepts that have an unambiguous answer in every frame, with their plainest wording.

    `allow_unseen`: among them pairs of noun and colour that are held out of training.
    """
    found: list[ConceptQuery] = []
    actors = clip.scene.actors
    nouns = {actor.noun for actor in actors}
    colours = [c for c in COLOURS if any(a.colour == c for a in actors)]
    for noun in NOUNS:
        own = [i for i, a in enumerate(actors) if a.noun == noun]
        found.append(ConceptQuery(noun, tuple(own), "noun" if own else "other noun"))
        # an object in its natural colours may have any of them
        if all(actors[i].colour for i in own):
            for colour in COLOURS if noun in nouns else colours:
                if allow_unseen or not held_out(noun, colour):
                    fitting = tuple(i for i in own if actors[i].colour == colour)
                    kind = "colour" if fitting else "other colour" if own else "other noun"
                    found.append(ConceptQuery(f"{colour} {noun}", fitting, kind))
        for size, fits in SIZES.items() if own else ():
            verdicts = [fits(actors[i].extent) for i in own]
            if None not in verdicts:
                fitting = tuple(i for i, verdict in zip(own, verdicts, strict=True) if verdict)
                found.append(ConceptQuery(f"{size} {noun}", fitting, "size" if fitting else "other size"))
    return found


MIX = {"noun": 0.27, "colour": 0.28, "size": 0.12, "other noun": 0.13, "other colour": 0.15, "other size": 0.05}
"""How often a kind of concept is asked about in training."""


def draw_concepts(rng: Generator, clip: SyntheticClip, count: int) -> list[ConceptQuery]:
    """Draw different concepts of a clip for training, in varied wording, and of each kind the part of `MIX`."""
    found = concepts(clip, allow_unseen=False)
    kinds = [query.kind for query in found]
    weights = np.array([MIX[kind] / kinds.count(kind) for kind in kinds])
    drawn = rng.choice(len(found), size=count, replace=False, p=weights / weights.sum())
    return [replace(found[i], text=concept_phrase(rng, found[i].text)) for i in drawn]
