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

from runtime.bundle.demo import CLIP, MASKS, SENTENCES

from .dataset import SyntheticClip, SyntheticDataset
from .scene import Expression

SIZE, FRAMES, RATE = 384, 16, 6
SEED = 5


def choose_sentences(clip: SyntheticClip) -> list[Expression]:
    """Choose three sentences about different objects, of as many kinds as possible."""
    order = {"position": 0, "colour": 1, "size": 2}
    left, chosen = sorted(clip.expressions, key=lambda e: order.get(e.kind, 9)), list[Expression]()
    while left and len(chosen) < 3:
        kinds = [c.kind for c in chosen]
        best = min(left, key=lambda e: (kinds.count(e.kind), order.get(e.kind, 9)))
        chosen.append(best)
        left = [e for e in left if e.target != best.target]
    return chosen


def encode_video(frames: np.ndarray, path: Path) -> None:
    """Write frames (T,H,W,3) uint8 to an H.264 file."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": "18", "preset": "slow"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_demo(folder: Path, seed: int = SEED) -> list[Expression]:
    """Write the files of the demonstration. Returns its sentences."""
    clip = SyntheticDataset(SIZE).clip("val", seed, FRAMES, ("colour", "motion", "position", "noun"))
    chosen = choose_sentences(clip)
    folder.mkdir(parents=True, exist_ok=True)
    encode_video(clip.frames, folder / CLIP)
    np.savez_compressed(folder / MASKS, masks=clip.instance_map)
    entries = [{"text": e.text, "object": e.target + 1, "kind": e.kind} for e in chosen]
    (folder / SENTENCES).write_text(json.dumps({"sentences": entries}, indent=1) + "\n")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.nano.demo", description="draw the demonstration clip")
    parser.add_argument("--out", type=Path, default=Path("build/nano/demo"))
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    try:
        chosen = write_demo(args.out, args.seed)
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from None
    print(args.out, *(f"{e.kind:9} {e.text!r}" for e in chosen), sep="\n")


if __name__ == "__main__":
    main()
