"""Demonstration clip of the nano bundle: a validation scene at a larger size.

    python -m export.nano.demo --out build/nano/demo

writes `clip.mp4` (H.264), `masks.npz` and `demo.json` (three sentences), which `runtime.bundle.demo` reads. The masks
belong to the frames before compression.
"""

from __future__ import annotations

import argparse
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from .dataset import SyntheticClip, SyntheticDataset
from .scene import Expression

SIZE, FRAMES, RATE = 384, 16, 6
SEED = 5


def demo_clip(
    seed: int, size: int = SIZE, frames: int = FRAMES, dataset: SyntheticDataset | None = None
) -> SyntheticClip:
    """Draw a clip of the validation split with sentences of several kinds."""
    return (dataset or SyntheticDataset(size)).clip("val", seed, frames, ("colour", "motion", "position", "noun"))


def choose_sentences(clip: SyntheticClip, count: int = 3) -> list[Expression]:
    """Choose sentences about different objects, of as many kinds as possible."""
    order = {"position": 0, "colour": 1, "size": 2}
    left = sorted(clip.expressions, key=lambda e: order.get(e.kind, 9))
    chosen: list[Expression] = []
    while left and len(chosen) < count:
        kinds = [c.kind for c in chosen]
        best = min(left, key=lambda e: (kinds.count(e.kind), order.get(e.kind, 9)))
        chosen.append(best)
        left = [e for e in left if e.target != best.target]
    return chosen


def encode_video(frames: np.ndarray, path: Path, rate: int = RATE) -> None:
    """Write frames (T,H,W,3) uint8 to an H.264 file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18", "preset": "slow"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_demo(clip: SyntheticClip, folder: Path) -> list[Expression]:
    """Write the files of the demonstration. Returns its sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = choose_sentences(clip)
    encode_video(clip.frames, folder / "clip.mp4")
    np.savez_compressed(folder / "masks.npz", masks=clip.instance_map)
    entries = [{"text": e.text, "object": e.target + 1, "kind": e.kind} for e in chosen]
    (folder / "demo.json").write_text(json.dumps({"sentences": entries}, indent=1) + "\n")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.nano.demo", description="draw the demonstration clip")
    parser.add_argument("--out", type=Path, default=Path("build/nano/demo"))
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    for e in write_demo(demo_clip(args.seed), args.out):
        print(f"{e.kind:9} {e.text!r}")
    for file in sorted(args.out.iterdir()):
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
