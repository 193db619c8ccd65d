"""J&F of a torch checkpoint on the world, without a bundle: what training validates with.

python -m export.nano.evaluate --checkpoint build/nano/run/nano.pth --clips 60
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..layers.common import upsample
from ..models.samwise import Samwise
from . import prompts, scores, tokenizer
from .clip_forward import TrackOptions, encode, normalize, track
from .config import from_dict
from .dataset import SyntheticClip, SyntheticDataset, test_clips
from .scores import Record


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What to evaluate and what to switch off."""

    split: str = "test"
    clips: int = 60
    first: int = 0
    expressions: int = 99
    """At most so many sentences per clip."""
    boundary: bool = True
    memory: bool = True
    conditional: bool = True
    shuffled: bool = False
    """Each clip gets the sentences of the next one."""
    prompt: str = "text"
    """text, or one of `prompts.MODES` on frame 0 (which then does not count)."""


def clips_of(options: EvaluationOptions, world: SyntheticDataset | None = None) -> list[SyntheticClip]:
    """The clips that `options` name."""
    return list(test_clips(world or SyntheticDataset(), options.clips, options.split, options.first))


@torch.inference_mode()
def evaluate(model: Samwise, options: EvaluationOptions, clips: Iterable[SyntheticClip] | None = None) -> list[Record]:
    """Records of all sentences. `model` in evaluation mode, on any device."""
    clips = clips_of(options) if clips is None else list(clips)
    device = next(model.parameters()).device
    words, records = tokenizer.load(), []
    for number, clip in enumerate(clips):
        expressions = clip.expressions[: options.expressions]
        if options.prompt != "text":
            expressions = _promptable(clip)[: options.expressions]
            if not expressions:
                continue
        half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
        frames = torch.from_numpy(clip.frames).to(device)[None]
        with half:
            if options.prompt == "text":
                other = clips[(number + 1) % len(clips)].expressions if options.shuffled else expressions
                said = [other[i % len(other)].text for i in range(len(expressions))]
                predicted = _sentences(model, frames, words, said, options)
            else:
                predicted = _visual(model, frames, clip, expressions, options)
        skip = int(options.prompt != "text")
        for mask, e in zip(predicted, expressions):
            j, f = scores.score(mask[skip:], clip.masks(e)[skip:], options.boundary)
            records.append(Record(f"{options.split}{options.first + number}", e.text, e.kind, e.unseen, j, f))
    return records


def _masks(logits: Tensor, side: int) -> np.ndarray:
    """(O,T,s,s) -> bool (O,T,side,side)."""
    return (upsample(logits.flatten(0, 1).float(), side) > 0).unflatten(0, logits.shape[:2]).cpu().numpy()


def _sentences(model: Samwise, frames: Tensor, words, said: list[str], options: EvaluationOptions) -> np.ndarray:
    tokens, mask = (torch.from_numpy(x).to(frames.device) for x in tokenizer.encode(words, said))
    encoded = encode(model, normalize(frames), tokens, mask, len(said))
    tracked = track(model, encoded, TrackOptions(conditional=options.conditional, memory=options.memory))
    return _masks(tracked.logits, frames.shape[2])


def _promptable(clip: SyntheticClip) -> list:
    """One sentence per object that shows on frame 0 well enough to be clicked."""
    found = {}
    for e in clip.expressions:
        shown = (clip.instance_map[0] == e.target + 1).sum()
        if shown > 60 and shown > 0.3 * clip.areas[0, e.target]:
            found.setdefault(e.target, e)
    return list(found.values())


def _visual(
    model: Samwise, frames: Tensor, clip: SyntheticClip, expressions: list, options: EvaluationOptions
) -> np.ndarray:
    masks = torch.from_numpy(np.stack([clip.instance_map[0] == e.target + 1 for e in expressions])).to(frames.device)
    random = torch.Generator(device=frames.device).manual_seed(0)
    modes = torch.full((len(masks),), prompts.MODES.index(options.prompt), device=frames.device)
    begin = prompts.start(model, masks, modes, permanent=True, jitter=0.0, generator=random)
    encoded = encode(model, normalize(frames), None, None, len(masks))
    return _masks(track(model, encoded, TrackOptions(memory=options.memory), begin).logits, frames.shape[2])


def load(path: Path, device: str = "cpu") -> Samwise:
    """The network of a checkpoint {'model', 'config'} in evaluation mode."""
    data = torch.load(path, map_location=device, weights_only=True)
    model = Samwise(from_dict(data["config"])).to(device)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in data["model"].items()})
    return model.eval()


def main() -> None:
    d = EvaluationOptions()
    parser = argparse.ArgumentParser(prog="python -m export.nano.evaluate", description="J&F of a torch checkpoint")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--split", choices=("val", "test"), default=d.split)
    parser.add_argument("--clips", type=int, default=d.clips)
    parser.add_argument("--first", type=int, default=d.first)
    parser.add_argument(
        "--all", action="store_true", help="every switch in turn: shuffled, memory off, CME off, click, box, mask"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load(args.checkpoint, args.device)
    base = EvaluationOptions(split=args.split, clips=args.clips, first=args.first)
    clips = clips_of(base, SyntheticDataset(model.config.sam.image_size))
    runs = {"text": base}
    if args.all:
        runs |= {
            "shuffled": replace(base, shuffled=True),
            "memory off": replace(base, memory=False),
            "cme off": replace(base, conditional=False),
        }
        runs |= {mode: replace(base, prompt=mode) for mode in ("click", "box", "mask")}
    results = {}
    for name, options in runs.items():
        results[name] = scores.table(evaluate(model, options, clips))
        print(f"\n{name}\n{scores.format_table(results[name])}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
