"""J&F of a torch checkpoint on the synthetic dataset, without a bundle; also the validation during training.

python -m export.nano.evaluate --checkpoint build/nano/run/nano.pth --clips 60
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.errors import UserError

from ..checkpoints.samwise import load_samwise
from ..layers.common import upsample
from ..models.samwise import Samwise
from . import prompts, scores, tokenizer
from .clip_forward import Tracker, TrackOptions, encode, normalize
from .dataset import SyntheticClip, SyntheticDataset, test_clips
from .scene import Expression


@torch.inference_mode()
def evaluate(model: Samwise, clips: Sequence[SyntheticClip], prompt: str = "text") -> list[scores.Record]:
    """Score the sentences of `clips`, or their objects with a `prompt` of `prompts.MODES` on frame 0, which then does
    not count. `model` is in evaluation mode, on any device."""
    device, records = next(model.parameters()).device, []
    first_frame = 0 if prompt == "text" else 1
    for number, clip in enumerate(clips):
        expressions = clip.expressions if prompt == "text" else _promptable(clip)
        if not expressions:
            continue
        pixels = normalize(torch.from_numpy(clip.frames).to(device)[None])
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            if prompt == "text":
                logits = _track_texts(model, pixels, [e.text for e in expressions])
            else:
                masks = torch.from_numpy(np.stack([clip.masks(e)[0] for e in expressions])).to(device)
                logits = _track_prompts(model, pixels, masks, prompt)
        large = upsample(logits.flatten(0, 1).float(), clip.frames.shape[1])
        for mask, e in zip((large > 0).unflatten(0, logits.shape[:2]).cpu().numpy(), expressions, strict=True):
            j, f = scores.score(mask[first_frame:], clip.masks(e)[first_frame:])
            records.append(scores.Record(str(number), e.text, e.kind, e.unseen, j, f))
    return records


def _track_texts(model: Samwise, pixels: Tensor, texts: list[str]) -> Tensor:
    tokens, mask = (torch.from_numpy(x).to(pixels.device) for x in tokenizer.encode(tokenizer.load(), texts))
    clip = encode(model, pixels, tokens, mask, len(texts))
    return Tracker(model, clip, TrackOptions(conditional_memory=True)).run().logits


def _track_prompts(model: Samwise, pixels: Tensor, masks: Tensor, prompt: str) -> Tensor:
    generator = torch.Generator(device=pixels.device).manual_seed(0)
    modes = torch.full((len(masks),), prompts.MODES.index(prompt), device=pixels.device)
    begin = prompts.encode_prompts(model, masks, modes, True, generator, jitter=0.0)
    clip = encode(model, pixels, None, None, len(masks))
    return Tracker(model, clip, TrackOptions(), begin).run().logits


def _promptable(clip: SyntheticClip) -> list[Expression]:
    """Select one sentence per object that is visible enough on frame 0 to be clicked."""
    found: dict[int, Expression] = {}
    for e in clip.expressions:
        found.setdefault(e.target, e)
    return [e for target, e in found.items() if target in clip.prompt_targets()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.nano.evaluate", description="J&F of a torch checkpoint")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=60)
    args = parser.parse_args()
    try:
        model = load_samwise(args.checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
        clips = list(test_clips(SyntheticDataset(model.config.sam.image_size), args.clips))
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    for prompt in ("text", "click", "box", "mask"):
        print(f"\n{prompt}\n{scores.format_table(scores.table(evaluate(model, clips, prompt)))}", flush=True)


if __name__ == "__main__":
    main()
