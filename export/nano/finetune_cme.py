"""Teach the conditional memory encoder of a finished network, and nothing else.

    python -m export.nano.finetune_cme --checkpoint build/nano/run/nano.pth

While the whole network trains, a memory that follows the wrong object is rare and changes from step to step, so that the
module only learns to say "stay". Here the network stands still: it follows sentences through clips of two windows in which
what they say begins late, every frame is asked, and the module learns from those answers, rare ones weighted up. The
checkpoint is replaced.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.samwise import Samwise
from . import tokenizer
from .clip_forward import TrackOptions, encode, normalize, track
from .dataset import SyntheticDataset
from .evaluate import load
from .loader import BatchSpec, sample
from .losses import clip_decision_labels
from .train import write

STREAM = BatchSpec("late", 16, 1, 2, kinds=("later", "earlier"))
FIRST = 10_000_000
"""Clips from here on were not seen by the training of the whole."""
CLIPS, STEPS, BATCH, RATE = 500, 1500, 256, 1e-3
RARE = 0.3
"""Part of the loss that switches have, however rare they are."""


@dataclass(slots=True)
class Decisions:
    """What was asked: `pointers`, `early` (N,D), `labels` (N) 1 switch, 0 stay."""

    pointers: Tensor
    early: Tensor
    labels: Tensor

    def pick(self, index: Tensor) -> Decisions:
        return Decisions(self.pointers[index], self.early[index], self.labels[index])


@torch.inference_mode()
def gather(model: Samwise, clips: int, world: SyntheticDataset, first: int = FIRST) -> Decisions:
    """Decisions on every frame from the sixth on, with the label that the ground truth gives them."""
    words, asked, labels = tokenizer.load(), [], []
    hook = model.conditional_memory_encoder.register_forward_hook(lambda _, tokens, __: asked.append(tokens))
    try:
        for seed in range(first, first + clips):
            clip, said = sample(world, STREAM, seed)
            tokens, mask = (torch.from_numpy(x) for x in tokenizer.encode(words, [text for _, text, _ in said]))
            truth = torch.stack([torch.from_numpy(clip.instance_map == owner) for owner, _, _ in said])
            encoded = encode(model, normalize(torch.from_numpy(clip.frames)[None]), tokens, mask, len(said))
            tracked = track(model, encoded, TrackOptions(conditional=True, every=1, decide_all=True))
            labels.append(clip_decision_labels(tracked, truth))
    finally:
        hook.remove()
    pointers, early, known = (torch.cat(x) for x in ([p for p, _ in asked], [e for _, e in asked], labels))
    return Decisions(pointers.clone(), early.clone(), known.clone()).pick(known >= 0)


def teach(model: Samwise, decisions: Decisions, steps: int = STEPS, seed: int = 0) -> dict[str, float]:
    """Train the module; returns the share of switches, and precision and recall of the last tenth, which is held out."""
    torch.manual_seed(seed)
    module = model.conditional_memory_encoder
    cut = len(decisions.labels) * 9 // 10
    shown, held = decisions.pick(torch.arange(cut)), decisions.pick(torch.arange(cut, len(decisions.labels)))
    share = shown.labels.float().mean().clamp(1e-4, 1 - 1e-4)
    weight = torch.stack(((1 - RARE) / (1 - share), RARE / share))
    optimizer = torch.optim.AdamW(module.parameters(), RATE, weight_decay=0.05)
    for step in range(steps):
        batch = shown.pick(torch.randint(0, cut, (BATCH,)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        loss = F.cross_entropy(module(batch.pointers, batch.early), batch.labels, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = module(held.pointers, held.early).argmax(1)
    right = ((said == 1) & (held.labels == 1)).sum()
    return {
        "switches": float(share),
        "precision": float(right / (said == 1).sum().clamp(min=1)),
        "recall": float(right / (held.labels == 1).sum().clamp(min=1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.nano.finetune_cme", description="teach the conditional memory encoder"
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("build/nano/run/nano.pth"))
    parser.add_argument("--out", type=Path, help="default: replace the checkpoint")
    parser.add_argument("--clips", type=int, default=CLIPS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # one sentence at a time is too little work to divide
    began, model = time.monotonic(), load(args.checkpoint)
    decisions = gather(model, args.clips, SyntheticDataset(model.config.sam.image_size))
    print(
        f"{len(decisions.labels)} decisions, {int(decisions.labels.sum())} of them to switch, {time.monotonic() - began:.0f} s"
    )
    print({name: round(value, 3) for name, value in teach(model, decisions).items()})
    data = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    trained = model.state_dict()
    data["model"] = {name: trained[name].to(value.dtype) for name, value in data["model"].items()}
    write(data, args.out or args.checkpoint)


if __name__ == "__main__":
    main()
