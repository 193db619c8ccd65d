"""Track an object through a video whose frames are known: click, propagate, correct a frame, propagate both ways.

    python examples/offline_correction.py
    python examples/offline_correction.py clip.mp4 --engine engines/NAME --frame 10 --click 0.4,0.5 --correction 0.5,0.6

nano is small: its masks change after a correction but do not get better. Judge quality with a checkpoint of SAM 2.
"""

import argparse
from pathlib import Path

import runtime

NANO = Path(__file__).resolve().parent.parent / "engines" / "nano"


def point(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("video", nargs="?", default=NANO / "demo" / "clip.mp4", help="file, or folder of images")
parser.add_argument("--frame", type=int, default=8, help="frame of the first click")
parser.add_argument("--click", type=point, default="0.36,0.79", metavar="X,Y", help="on the object, in 0..1")
parser.add_argument(
    "--correction", type=point, default="0.32,0.67", metavar="X,Y", help="beside the object, 3 frames on"
)
parser.add_argument("--engine", default=NANO, help="a bundle")
args = parser.parse_args()

# without the option, the next propagation tracks a corrected frame again, as SAM 2 does
options = {"add_all_frames_to_correct_as_cond": True}
with runtime.load(args.engine) as engine, engine.video(args.video, **options) as session:
    session.add_points(args.frame, 1, [args.click], [1], normalized=True)
    before = {result.frame_index: result.masks[0] for result in session.propagate()}

    corrected = min(args.frame + 3, session.num_frames - 1)
    session.add_points(corrected, 1, [args.correction], [0], clear_old=False, normalized=True)
    after = {result.frame_index: result.masks[0] for result in session.propagate()}
    after |= {result.frame_index: result.masks[0] for result in session.propagate(reverse=True)}

for frame, mask in sorted(after.items()):
    note = f"{(mask != before[frame]).sum()} changed by the correction" if frame in before else "tracked backward"
    print(f"frame {frame:3}  {mask.sum()} pixels, {note}")
