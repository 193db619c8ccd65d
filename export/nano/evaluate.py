"""J&F of a torch checkpoint on the synthetic dataset, without a bundle; also the validation during training.

python -m export.nano.evaluate --checkpoint build/nano/run/nano.pth --clips 60
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..layers.common import upsample
from ..models.samwise import Samwise
from . import prompts, scores, tokenizer
from .checkpointing import load_model
from .clip_forward import Tracker, TrackOptions, encode, normalize
from .dataset import SyntheticClip, SyntheticDataset, test_clips
from .scene import Expression
from .scores import Record


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """Clips to evaluate, and parts of the network to switch off."""

    split: str = "test"
    clips: int = 60
    first: int = 0
    boundary: bool = True
    memory: bool = True
    conditional_memory: bool = True
    shuffled: bool = False
    """Each clip gets the sentences of the next one."""
    prompt: str = "text"
    """"text", or one of `prompts.MODES` on frame 0, which is then not counted."""


def select_clips(options: EvaluationOptions, dataset: SyntheticDataset) -> list[SyntheticClip]:
    return list(test_clips(dataset, options.clips, options.split, options.first))


@torch.inference_mode()
def evaluate(model: Samwise, options: EvaluationOptions, clips: Sequence[SyntheticClip]) -> list[Record]:
    """Score all sentences of `clips`. `model` is in evaluation mode, on any device."""
    device = next(model.parameters()).device
    bpe, records = tokenizer.load(), []
    is_text = options.prompt == "text"
    first_frame = 0 if is_text else 1
    for number, clip in enumerate(clips):
        expressions = clip.expressions if is_text else _promptable(clip)
        if not expressions:
            continue
        frames = torch.from_numpy(clip.frames).to(device)[None]
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            if is_text:
                source = clips[(number + 1) % len(clips)].expressions if options.shuffled else expressions
                texts = [source[i % len(source)].text for i in range(len(expressions))]
                predicted = _track_texts(model, frames, bpe, texts, options)
            else:
                predicted = _track_prompts(model, frames, clip, expressions, options)
        for mask, e in zip(predicted, expressions, strict=True):
            j, f = scores.score(mask[first_frame:], clip.masks(e)[first_frame:], options.boundary)
            records.append(Record(f"{options.split}{options.first + number}", e.text, e.kind, e.unseen, j, f))
    return records


def _masks(logits: Tensor, side: int) -> np.ndarray:
    """Upsample and binarize logits (O,T,s,s): bool (O,T,side,side)."""
    return (upsample(logits.flatten(0, 1).float(), side) > 0).unflatten(0, logits.shape[:2]).cpu().numpy()


def _track_texts(
    model: Samwise, frames: Tensor, bpe: Tokenizer, texts: list[str], options: EvaluationOptions
) -> np.ndarray:
    tokens, mask = (torch.from_numpy(x).to(frames.device) for x in tokenizer.encode(bpe, texts))
    encoded = encode(model, normalize(frames), tokens, mask, len(texts))
    track_options = TrackOptions(conditional_memory=options.conditional_memory, memory=options.memory)
    return _masks(Tracker(model, encoded, track_options).run().logits, frames.shape[2])


def _track_prompts(
    model: Samwise, frames: Tensor, clip: SyntheticClip, expressions: list[Expression], options: EvaluationOptions
) -> np.ndarray:
    masks = torch.from_numpy(np.stack([clip.masks(e)[0] for e in expressions])).to(frames.device)
    generator = torch.Generator(device=frames.device).manual_seed(0)
    modes = torch.full((len(masks),), prompts.MODES.index(options.prompt), device=frames.device)
    prompt = prompts.encode_prompts(model, masks, modes, permanent=True, jitter=0.0, generator=generator)
    encoded = encode(model, normalize(frames), None, None, len(masks))
    return _masks(Tracker(model, encoded, TrackOptions(memory=options.memory), prompt).run().logits, frames.shape[2])


def _promptable(clip: SyntheticClip) -> list[Expression]:
    """Select one sentence per object that is visible enough on frame 0 to be clicked."""
    found: dict[int, Expression] = {}
    for e in clip.expressions:
        visible = clip.masks(e)[0].sum()
        if visible > 60 and visible > 0.3 * clip.areas[0, e.target]:
            found.setdefault(e.target, e)
    return list(found.values())


def main() -> None:
    d = EvaluationOptions()
    parser = argparse.ArgumentParser(prog="python -m export.nano.evaluate", description="J&F of a torch checkpoint")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--split", choices=("val", "test"), default=d.split)
    parser.add_argument("--clips", type=int, default=d.clips)
    parser.add_argument("--first", type=int, default=d.first)
    parser.add_argument("--all", action="store_true", help="also: shuffled, memory off, CME off, click, box, mask")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load_model(args.checkpoint, args.device)
    base = EvaluationOptions(split=args.split, clips=args.clips, first=args.first)
    clips = select_clips(base, SyntheticDataset(model.config.sam.image_size))
    variants = {"text": base}
    if args.all:
        variants |= {
            "shuffled": replace(base, shuffled=True),
            "memory off": replace(base, memory=False),
            "cme off": replace(base, conditional_memory=False),
            **{mode: replace(base, prompt=mode) for mode in ("click", "box", "mask")},
        }
    results = {}
    for name, options in variants.items():
        results[name] = scores.table(evaluate(model, options, clips))
        print(f"\n{name}\n{scores.format_table(results[name])}", flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
