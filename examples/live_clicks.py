"""Track objects by clicks while frames come one by one; add an object and correct it on the way. Memory is bounded.

python examples/live_clicks.py
python examples/live_clicks.py clip.mp4 --engine engines/sam2-tiny --click 0.4,0.5 --later 0.7,0.6
"""

import argparse
from pathlib import Path

import runtime

NANO = Path(__file__).resolve().parent.parent / "engines" / "nano"


def point(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("video", nargs="?", default=NANO / "demo" / "clip.mp4", help="file, folder, camera number, address")
parser.add_argument("--click", type=point, default="0.55,0.25", metavar="X,Y", help="object 1 on frame 0, in 0..1")
parser.add_argument("--later", type=point, default="0.80,0.85", metavar="X,Y", help="object 2 on frame 4, in 0..1")
parser.add_argument("--engine", default=NANO, help="a bundle")
args = parser.parse_args()

with runtime.load(args.engine) as engine, runtime.open_video(args.video) as video, engine.live() as session:
    for number, frame in enumerate(video):
        prompts = {}
        if number == 0:
            prompts[1] = runtime.Points([args.click], [1], normalized=True)
        if number == 4:
            prompts[2] = runtime.Points([args.later], [1], normalized=True)
        (result,) = session.push(frame, prompts)
        if number == 6:  # the user sees that object 1 spilled over onto object 2: a click beside it
            result = session.correct({1: runtime.Points([args.later], [0], normalized=True)})
        areas = [
            f"object {obj}: {mask.sum()} pixels" for obj, mask in zip(result.object_ids, result.masks, strict=True)
        ]
        print(f"frame {result.frame_index:3}  " + "  ".join(areas))
