"""Fine-tune the conditional memory encoder (CME) of a trained network, with all other weights frozen.

    python -m export.nano.finetune_cme --checkpoint build/nano/run/nano.pth

While the whole network trains, a memory of the wrong object is rare and changes from step to step, so that the encoder
only learns to answer "stay". Here the network tracks sentences through clips of two windows whose described motions
begin late, every frame is decided, and the encoder is trained on those decisions with switches weighted up. The
checkpoint is replaced. Measured in docs/notes/nano.md; the shipped weights do not use it.
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
from .checkpointing import load_model, write_atomic
from .clip_forward import Tracker, TrackOptions, encode, normalize
from .dataset import SyntheticDataset
from .loader import BatchSpec, sample
from .losses import clip_decision_labels

SPEC = BatchSpec("late", 16, 1, 2, kinds=("later", "earlier"))
FIRST_SEED = 10_000_000
"""Clips from this seed on are not used by the training of the whole network."""
CLIPS, STEPS, BATCH, LEARNING_RATE = 500, 1500, 256, 1e-3
SWITCH_WEIGHT = 0.3
"""Part of the loss that switches have, however rare they are."""


@dataclass(slots=True)
class Decisions:
    """Inputs `pointers`, `early_tokens` (N,D) and `labels` (N): 1 switch, 0 stay."""

    pointers: Tensor
    early_tokens: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor | slice) -> Decisions:
        return Decisions(self.pointers[index], self.early_tokens[index], self.labels[index])


@torch.inference_mode()
def collect_decisions(model: Samwise, clips: int, dataset: SyntheticDataset, first: int = FIRST_SEED) -> Decisions:
    """Collect decisions on every frame from the sixth on, with labels from the ground truth."""
    bpe, inputs, labels = tokenizer.load(), [], []
    hook = model.conditional_memory_encoder.register_forward_hook(lambda _, args, __: inputs.append(args))
    options = TrackOptions(conditional_memory=True, cme_interval=1, decide_only=True)
    try:
        for seed in range(first, first + clips):
            clip, targets = sample(dataset, SPEC, seed)
            tokens, mask = (torch.from_numpy(x) for x in tokenizer.encode(bpe, [t.text for t in targets]))
            truth = torch.stack([torch.from_numpy(clip.instance_map == t.instance_id) for t in targets])
            encoded = encode(model, normalize(torch.from_numpy(clip.frames)[None]), tokens, mask, len(targets))
            labels.append(clip_decision_labels(Tracker(model, encoded, options).run(), truth))
    finally:
        hook.remove()
    pointers, early_tokens = (torch.cat(x) for x in zip(*inputs, strict=True))
    known = torch.cat(labels)
    return Decisions(pointers.clone(), early_tokens.clone(), known.clone())[known >= 0]


def finetune(model: Samwise, decisions: Decisions, steps: int = STEPS, seed: int = 0) -> dict[str, float]:
    """Train the encoder. Returns the part of switches, and precision and recall on the last tenth, which is held
    out."""
    torch.manual_seed(seed)
    encoder = model.conditional_memory_encoder
    count = len(decisions.labels) * 9 // 10
    training, held_out = decisions[:count], decisions[count:]
    part = training.labels.float().mean().clamp(1e-4, 1 - 1e-4)
    weight = torch.stack(((1 - SWITCH_WEIGHT) / (1 - part), SWITCH_WEIGHT / part))
    optimizer = torch.optim.AdamW(encoder.parameters(), LEARNING_RATE, weight_decay=0.05)
    for step in range(steps):
        batch = training[torch.randint(0, count, (BATCH,))]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        loss = F.cross_entropy(encoder(batch.pointers, batch.early_tokens), batch.labels, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        switch = encoder(held_out.pointers, held_out.early_tokens).argmax(1) == 1
    should_switch = held_out.labels == 1
    right = (switch & should_switch).sum()
    return {
        "switches": float(part),
        "precision": float(right / switch.sum().clamp(min=1)),
        "recall": float(right / should_switch.sum().clamp(min=1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.nano.finetune_cme", description="fine-tune the conditional memory encoder"
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("build/nano/run/nano.pth"))
    parser.add_argument("--out", type=Path, help="default: replace the checkpoint")
    parser.add_argument("--clips", type=int, default=CLIPS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # one sentence at a time is too little work to divide
    began, model = time.monotonic(), load_model(args.checkpoint)
    decisions = collect_decisions(model, args.clips, SyntheticDataset(model.config.sam.image_size))
    seconds = time.monotonic() - began
    print(f"{len(decisions.labels)} decisions, {int(decisions.labels.sum())} of them switches, {seconds:.0f} s")
    print({name: round(value, 3) for name, value in finetune(model, decisions).items()})
    data = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
    trained = model.state_dict()
    data["model"] = {name: trained[name].to(value.dtype) for name, value in data["model"].items()}
    write_atomic(data, args.out or args.checkpoint)


if __name__ == "__main__":
    main()
