"""Segment one image in three ways: by a click, by a sentence, and everything in it.

python examples/one_image.py
python examples/one_image.py photo.jpg --engine engines/sam2-tiny --click 0.4,0.5 --grid 32 --iou 0.8 --stability 0.95
"""

import argparse
from pathlib import Path

import runtime

NANO = Path(__file__).resolve().parent.parent / "engines" / "nano"


def point(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("image", nargs="?", default=NANO / "demo" / "clip.mp4", help="an image, or a video's first frame")
parser.add_argument("--click", type=point, default="0.55,0.25", metavar="X,Y", help="on the object, in 0..1")
parser.add_argument("--text", default="the lion", help="a sentence")
parser.add_argument("--grid", type=int, default=12, help="points per side of the grid for automatic masks")
parser.add_argument("--iou", type=float, default=0.7, help="least predicted IoU of automatic masks (SAM 2: 0.8)")
parser.add_argument("--stability", type=float, default=0.8, help="least stability of automatic masks (SAM 2: 0.95)")
parser.add_argument("--engine", default=NANO, help="a bundle")
args = parser.parse_args()

with runtime.load(args.engine) as engine:
    predictor = engine.image(args.image)
    if runtime.Capability.PROMPT_IMAGE in engine.capabilities:
        masks, ious, _ = predictor.predict(points=[args.click], labels=[1], normalized=True)
        for mask, iou in zip(masks, ious, strict=True):
            print(f"click     {mask.sum():6} pixels, predicted IoU {iou:.2f}")
        options = {"pred_iou_thresh": args.iou, "stability_score_thresh": args.stability}
        for segment in predictor.segment_all(points_per_side=args.grid, **options):
            print(f"automatic {segment.area:6} pixels, predicted IoU {segment.score:.2f}, box {segment.box}")
    if engine.capabilities & {runtime.Capability.TEXT_IMAGE, runtime.Capability.TEXT_VIDEO}:
        result = predictor.refer([runtime.Text(args.text)])
        print(f"sentence  {result.masks[0].sum():6} pixels, score {result.scores[0]:.2f}  {args.text!r}")
