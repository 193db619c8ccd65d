"""Follow a sentence on a camera or stream. Frames that inference is too slow for are dropped, oldest first.

    python examples/camera.py 0 --text "the person with a hat"
    python examples/camera.py rtsp://host/stream --engine engines/NAME --text "the red car" --window 1 --frames 100

`--window 1` answers every frame at once instead of in bursts of 8: an approximation, see docs/guides/api.md.
"""

import argparse
import time
from pathlib import Path

import runtime

NANO = Path(__file__).resolve().parent.parent / "engines" / "nano"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("source", nargs="?", default="0", help="camera number, RTSP or HTTP address, or a file")
parser.add_argument("--text", default="the crab in the video", help="a sentence")
parser.add_argument("--window", type=int, help="frames per clip (default: as trained)")
parser.add_argument("--frames", type=int, help="stop after this many frames")
parser.add_argument("--engine", default=NANO, help="a bundle")
args = parser.parse_args()

with runtime.load(args.engine) as engine, runtime.open_video(args.source, max_frames=args.frames) as video:
    with engine.session([runtime.Text(args.text)], window=args.window) as session:
        start = time.perf_counter()
        for result in session.stream(video):
            rate = (result.frame_index + 1) / (time.perf_counter() - start)
            x0, y0, x1, y1 = result.boxes[0]
            box = f"box {x0:.0f},{y0:.0f} to {x1:.0f},{y1:.0f}" if result.masks[0].any() else "not visible"
            print(f"frame {result.frame_index}  {box}  {rate:.1f} frames/s, {video.dropped} dropped")
