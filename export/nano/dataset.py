"""The world: clips with masks and sentences, each a pure function of split, seed and length.

    clip = SyntheticDataset().clip("test", 7, frames=16)
    clip.frames (T,128,128,3) uint8, clip.instance_map (T,128,128) uint8, clip.expressions

`clip.masks(expression)` is the ground truth: visible pixels only, and none on frames on which the object is away. The
splits draw from different random streams; only "test" shows pairs of noun and attribute that are held out of training.

    python -m export.nano.dataset --split test --seed 0 --out sheet.png      # look at a few clips
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import sprites
from .grammar import absent
from .render import Painter
from .scene import Expression, Scene
from .scene_generator import build

PIXELS = 128
"""Side of the clips that are trained and measured on."""
SPLITS = {"train": 1, "val": 2, "test": 3}
TEST_LENGTHS = (8, 12, 16)
TEST_CLIPS = 200
VISIBLE = 0.03
"""Part of an object that must show on a frame for it to count as present; below it the few pixels belong to nobody."""


@dataclass(slots=True)
class SyntheticClip:
    """One clip. `instance_map`: 0 background, i+1 actor i, visible pixels only. `areas` (T,N): pixels of each actor, unhidden."""

    frames: np.ndarray
    instance_map: np.ndarray
    areas: np.ndarray
    scene: Scene

    @property
    def expressions(self) -> list[Expression]:
        return self.scene.expressions

    def masks(self, expression: Expression) -> np.ndarray:
        """Ground truth of an expression, bool (T,H,W)."""
        return self.instance_map == expression.target + 1


class SyntheticDataset:
    """Draws clips of `size` pixels square. `atlas`: sprites (N,128,128,4), default the one of `export.nano.sprites`."""

    def __init__(self, size: int = PIXELS, atlas: np.ndarray | None = None) -> None:
        self.painter = Painter(sprites.load() if atlas is None else atlas, size)

    def clip(self, split: str, seed: int, frames: int = 16, kinds: tuple[str, ...] | None = None) -> SyntheticClip:
        """SyntheticClip number `seed` of a split. At least one expression; each names an object that can be seen."""
        rng = np.random.default_rng([SPLITS[split], seed, frames])
        while True:
            scene = build(rng, frames, allow_unseen=split == "test", kinds=kinds)
            pixels, instance_map, areas = self.painter.paint(scene, rng)
            instance_map = _forget_specks(instance_map, areas)
            scene.expressions = [e for e in scene.expressions if _shown(instance_map, areas, e)]
            if scene.expressions:
                return SyntheticClip(pixels, instance_map, areas, scene)

    def absent(self, clip: SyntheticClip, rng: np.random.Generator) -> str:
        """A sentence about something that is not in the clip."""
        return absent(rng, {actor.noun for actor in clip.scene.actors})


def test_clips(world: SyntheticDataset, count: int = TEST_CLIPS, split: str = "test", first: int = 0):
    """The clips of a split in order, lengths taking turns: 8, 12 and 16 frames."""
    for seed in range(first, first + count):
        yield world.clip(split, seed, TEST_LENGTHS[seed % len(TEST_LENGTHS)])


def _visible(instance_map: np.ndarray, count: int) -> np.ndarray:
    """(T,N) visible pixels of each actor."""
    return np.stack([np.bincount(o.ravel(), minlength=count + 1)[1 : count + 1] for o in instance_map])


def _forget_specks(instance_map: np.ndarray, areas: np.ndarray) -> np.ndarray:
    seen = _visible(instance_map, areas.shape[1])
    for t, i in zip(*np.nonzero((seen > 0) & (seen < VISIBLE * np.maximum(areas, seen.max(axis=0))))):
        instance_map[t][instance_map[t] == i + 1] = 0
    return instance_map


def _shown(instance_map: np.ndarray, areas: np.ndarray, expression: Expression) -> bool:
    """Enough of the object shows for a viewer to name it: half of it on some frame, and a third on most present ones."""
    mine = (instance_map == expression.target + 1).sum(axis=(1, 2))
    full = areas[:, expression.target].max()
    part = mine / max(full, 1)
    present = part > 0
    return bool(present.mean() >= 0.25 and part.max() >= 0.5 and (part[present] > 0.33).mean() >= 0.6)


def sheet(clip: SyntheticClip, columns: int = 8) -> np.ndarray:
    """A contact sheet, uint8 (rows,width,3): the frames, and below them the instance_map in colours."""
    steps = np.linspace(0, len(clip.frames) - 1, min(columns, len(clip.frames))).round().astype(int)
    palette = np.random.default_rng(5).integers(60, 255, (16, 3)).astype(np.uint8)
    palette[0] = 0
    top = np.concatenate(list(clip.frames[steps]), axis=1)
    return np.concatenate([top, palette[np.concatenate(list(clip.instance_map[steps]), axis=1)]], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.nano.dataset", description="look at clips of the world")
    parser.add_argument("--split", choices=SPLITS, default="val")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("out/world.png"))
    args = parser.parse_args()
    from PIL import Image

    world, sheets = SyntheticDataset(), []
    for seed in range(args.seed, args.seed + args.count):
        clip = world.clip(args.split, seed, args.frames)
        sheets.append(sheet(clip))
        for e in clip.expressions:
            print(
                f"{seed}: {e.kind:9} {'unseen ' if e.unseen else ''}{e.text!r} -> {clip.scene.actors[e.target].noun} {e.target + 1}"
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(sheets)).save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
