"""Follow sentences through a video: one mask PNG per frame and sentence.

python examples/text_on_video.py
python examples/text_on_video.py clip.mp4 --engine engines/NAME --text "the horse jumping" --text "its rider"
"""

import argparse
from pathlib import Path

from PIL import Image

import runtime

NANO = Path(__file__).resolve().parent.parent / "engines" / "nano"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("video", nargs="?", default=NANO / "demo" / "clip.mp4", help="file, folder of images, address")
parser.add_argument("--text", action="append", help="a sentence; may be repeated")
parser.add_argument("--engine", default=NANO, help="a bundle")
parser.add_argument("--out", type=Path, default=Path("out/text"), help="folder of the masks")
args = parser.parse_args()
sentences = args.text or ["the crab in the video", "the house that shrinks"]

args.out.mkdir(parents=True, exist_ok=True)
with runtime.load(args.engine) as engine, runtime.open_video(args.video) as video:
    with engine.session([runtime.Text(sentence) for sentence in sentences]) as session:
        for result in session.stream(video):
            for prompt, mask, score in zip(result.prompt_ids, result.masks, result.scores, strict=True):
                Image.fromarray(mask).save(args.out / f"{result.frame_index:05d}_{prompt}.png")
                print(
                    f"frame {result.frame_index:3}  {sentences[prompt - 1]!r}  score {score:.2f}  {mask.sum()} pixels"
                )
