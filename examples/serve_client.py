"""Follow a sentence through a video on a server; the result of each frame is that of the runtime itself.

python -m runtime.serve                        # in another terminal
python examples/serve_client.py clip.mp4 --text "the horse jumping"
"""

import argparse
from pathlib import Path

import runtime
from runtime.serve import Client

CLIP = Path(__file__).resolve().parent.parent / "engines" / "nano" / "demo" / "clip.mp4"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("video", nargs="?", default=CLIP, help="file, folder of images, camera number")
parser.add_argument("--text", default="the crab in the video", help="a sentence")
parser.add_argument("--server", default="http://127.0.0.1:8000", help="address of the server")
parser.add_argument("--token", help="where the server needs one")
args = parser.parse_args()

with runtime.open_video(args.video) as video:
    for result in Client(args.server, args.token).stream(video, [args.text]):
        print(f"frame {result.frame_index:3}  score {result.scores[0]:.2f}  {result.masks[0].sum()} pixels")
