"""Synthetic clips with masks and sentences, each a pure function of split, seed and length.

    clip = SyntheticDataset().clip("test", 7, frames=16)
    clip.frames (T,128,128,3) uint8, clip.instance_map (T,128,128) uint8, clip.expressions

`clip.masks(expression)` is the ground truth: visible pixels only, and none on frames on which the object is absent. The
splits draw from different random streams; only "test" shows pairs of noun and attribute that are held out of training.

    python -m export.nano.dataset --split test --seed 0 --out sheet.png      # contact sheet of a few clips
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import sprites
from .grammar import absent_sentence
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


class SyntheticDataset:
    """Draws clips of `size` pixels square. `atlas`: sprites (N,128,128,4), default that of `export.nano.sprites`."""

    def __init__(self, size: int = PIXELS, atlas: np.ndarray | None = None) -> None:
        self.size = size
        self.renderer = Renderer(sprites.load() if atlas is None else atlas, size)

    def clip(self, split: str, seed: int, frames: int = 16, kinds: tuple[str, ...] | None = None) -> SyntheticClip:
        """Draw clip number `seed` of a split, with at least one expression; each refers to a visible object."""
        rng = np.random.default_rng([SPLITS[split], seed, frames])
        while True:
            scene = generate_scene(rng, frames, allow_unseen=split == "test", kinds=kinds)
            pixels, instance_map, areas = self.renderer.render(scene, rng)
            _remove_specks(instance_map, areas)
            scene.expressions = [e for e in scene.expressions if _is_visible(instance_map, areas, e)]
            if scene.expressions:
                return SyntheticClip(pixels, instance_map, areas, scene)

    def absent_sentence(self, clip: SyntheticClip, rng: np.random.Generator) -> str:
        """Draw a sentence about an object that is not in the clip."""
        return absent_sentence(rng, {actor.noun for actor in clip.scene.actors})


def test_clips(dataset: SyntheticDataset, count: int, split: str = "test", first: int = 0) -> Iterator[SyntheticClip]:
    """Yield clips of a split in order, of 8, 12 and 16 frames in turn."""
    for seed in range(first, first + count):
        yield dataset.clip(split, seed, TEST_LENGTHS[seed % len(TEST_LENGTHS)])


def _remove_specks(instance_map: np.ndarray, areas: np.ndarray) -> None:
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


def contact_sheet(clip: SyntheticClip, columns: int = 8) -> np.ndarray:
    """Draw a contact sheet, uint8 (rows,width,3): the frames, and below them the instance maps in colours."""
    steps = np.linspace(0, len(clip.frames) - 1, min(columns, len(clip.frames))).round().astype(int)
    palette = np.random.default_rng(5).integers(60, 255, (16, 3)).astype(np.uint8)
    palette[0] = 0
    top = np.concatenate(list(clip.frames[steps]), axis=1)
    return np.concatenate([top, palette[np.concatenate(list(clip.instance_map[steps]), axis=1)]], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.nano.dataset", description="draw a contact sheet of clips")
    parser.add_argument("--split", choices=SPLITS, default="val")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("out/nano_clips.png"))
    args = parser.parse_args()
    dataset, sheets = SyntheticDataset(), []
    for seed in range(args.seed, args.seed + args.count):
        clip = dataset.clip(args.split, seed, args.frames)
        sheets.append(contact_sheet(clip))
        for e in clip.expressions:
            noun = clip.scene.actors[e.target].noun
            print(f"{seed}: {e.kind:9} {'unseen ' if e.unseen else ''}{e.text!r} -> {noun} {e.target + 1}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(sheets)).save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
