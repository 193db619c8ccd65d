"""Synthetic clips with masks and sentences, each a pure function of split, seed and length.

    clip = SyntheticDataset().clip("test", 7, frames=16)
    clip.frames (T,128,128,3) uint8, clip.instance_map (T,128,128) uint8, clip.expressions

`clip.masks(expression)` is the ground truth: visible pixels only, and none on frames on which the object is absent. The
splits draw from different random streams; only "test" shows pairs of noun and attribute that are held out of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .render import Renderer
from .scene import Expression, Scene
from .scene_generator import generate_scene

PIXELS = 128
"""Side of the clips for training and measurement."""
SPLITS = {"train": 1, "val": 2, "test": 3}
TEST_LENGTHS = (8, 12, 16)
MIN_VISIBLE = 0.03
"""Part of an object that must show on a frame for it to count as present; fewer pixels become background."""


@dataclass(slots=True)
class SyntheticClip:
    """One clip. `instance_map` (T,H,W): 0 background, i+1 visible pixels of actor i. `areas` (T,N): pixels of each
    actor without occlusion."""

    frames: np.ndarray
    instance_map: np.ndarray
    areas: np.ndarray
    scene: Scene

    @property
    def expressions(self) -> list[Expression]:
        return self.scene.expressions

    def masks(self, expression: Expression) -> np.ndarray:
        """Return the ground truth of an expression, bool (T,H,W)."""
        return self.instance_map == expression.target + 1

    def prompt_targets(self) -> np.ndarray:
        """Return the actors that show well enough on frame 0 for a prompt there."""
        visible = np.bincount(self.instance_map[0].ravel(), minlength=len(self.scene.actors) + 1)[1:]
        return np.flatnonzero((visible > 0.3 * np.maximum(self.areas[0], 1)) & (visible > 60))


class SyntheticDataset:
    """Draws clips of `size` pixels square. Needs the sprites (see `export.nano.sprites`)."""

    def __init__(self, size: int = PIXELS) -> None:
        self.renderer = Renderer(size)

    def clip(self, split: str, seed: int, frames: int = 16, kinds: tuple[str, ...] | None = None) -> SyntheticClip:
        """Draw clip number `seed` of a split, with at least one expression; each refers to a visible object."""
        rng = np.random.default_rng([SPLITS[split], seed, frames])
        while True:
            scene = generate_scene(rng, frames, split == "test", kinds)
            pixels, instance_map, areas = self.renderer.render(scene, rng)
            clean_instance_map(instance_map, areas)
            scene.expressions = [e for e in scene.expressions if _is_visible(instance_map, areas, e)]
            if scene.expressions:
                return SyntheticClip(pixels, instance_map, areas, scene)


def test_clips(dataset: SyntheticDataset, count: int, split: str = "test", first: int = 0) -> Iterator[SyntheticClip]:
    """Yield clips of a split in order, of 8, 12 and 16 frames in turn."""
    for seed in range(first, first + count):
        yield dataset.clip(split, seed, TEST_LENGTHS[seed % len(TEST_LENGTHS)])


def clean_instance_map(instance_map: np.ndarray, areas: np.ndarray) -> None:
    """Set actors to background, in place, on the frames on which almost nothing of them shows."""
    count = areas.shape[1] + 1
    visible = np.stack([np.bincount(frame.ravel(), minlength=count)[1:count] for frame in instance_map])
    for t, i in np.argwhere((visible > 0) & (visible < MIN_VISIBLE * np.maximum(areas, visible.max(axis=0)))):
        instance_map[t][instance_map[t] == i + 1] = 0


def _is_visible(instance_map: np.ndarray, areas: np.ndarray, expression: Expression) -> bool:
    """Tell whether a viewer can name the object: half of it shows on some frame, and a third on most others."""
    pixels = (instance_map == expression.target + 1).sum(axis=(1, 2))
    part = pixels / max(areas[:, expression.target].max(), 1)
    present = part > 0
    return bool(present.mean() >= 0.25 and part.max() >= 0.5 and (part[present] > 0.33).mean() >= 0.6)
