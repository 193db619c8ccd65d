"""Fine-tune the conditional memory encoder (CME) of a trained network, with all other weights frozen.

    python -m export.nano.finetune_cme --checkpoint build/nano/run/nano.pth

While the whole network trains, a memory of the wrong object is rare and changes from step to step, so that the encoder
only learns to answer "stay". Here the network tracks sentences through clips of two windows whose described motions
begin late, every frame is decided, and the encoder is trained on those decisions with switches weighted up. The
checkpoint is replaced. Measured in docs/notes/nano.md; the shipped weights do not use it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.errors import UserError

from ..checkpoints.samwise import load_samwise
from ..models.samwise import Samwise
from . import tokenizer
from .checkpointing import export_weights
from .clip_forward import Tracker, TrackOptions, encode, normalize
from .dataset import SyntheticDataset
from .loader import BatchSpec, sample
from .objectives import clip_decision_labels

SPEC = BatchSpec("late", 16, 1, 2, kinds=("later", "earlier"))
FIRST_SEED = 10_000_000
"""Clips from this seed on are not used by the training of the whole network."""
STEPS, BATCH, LEARNING_RATE = 1500, 256, 1e-3
SWITCH_WEIGHT = 0.3
"""Part of the loss that switches have, however rare they are."""


class Decisions(NamedTuple):
    """Inputs `pointers`, `early_tokens` (N,D) and `labels` (N): 1 switch, 0 stay."""

    pointers: Tensor
    early_tokens: Tensor
    labels: Tensor


@torch.inference_mode()
def collect_decisions(model: Samwise, clips: int, dataset: SyntheticDataset) -> Decisions:
    """Collect decisions on every frame from the sixth on, with labels from the ground truth."""
    bpe, inputs, labels = tokenizer.load(), [], []
    hook = model.conditional_memory_encoder.register_forward_hook(lambda _, args, __: inputs.append(args))
    options = TrackOptions(conditional_memory=True, cme_interval=1, decide_only=True)
    for seed in range(FIRST_SEED, FIRST_SEED + clips):
        clip, targets = sample(dataset, SPEC, seed)
        tokens, mask = (torch.from_numpy(x) for x in tokenizer.encode(bpe, [t.text for t in targets]))
        truth = torch.stack([torch.from_numpy(clip.instance_map == t.instance_id) for t in targets])
        encoded = encode(model, normalize(torch.from_numpy(clip.frames)[None]), tokens, mask, len(targets))
        labels.append(clip_decision_labels(Tracker(model, encoded, options).run(), truth))
    hook.remove()
    columns = (*(torch.cat(x) for x in zip(*inputs, strict=True)), torch.cat(labels))
    return Decisions(*(x[columns[2] >= 0] for x in columns))


def finetune(model: Samwise, decisions: Decisions, steps: int = STEPS) -> dict[str, float]:
    """Train the encoder. Returns the part of switches, and precision and recall on the last tenth, which is held out.

    Raises UserError if the decisions hold no switch to learn from.
    """
    torch.manual_seed(0)
    encoder, count = model.conditional_memory_encoder, len(decisions.labels) * 9 // 10
    *training, labels = (x[:count] for x in decisions)
    *held_out, held_out_labels = (x[count:] for x in decisions)
    part = labels.float().mean()
    if not 0 < part < 1:
        raise UserError(f"{count} decisions, {int(labels.sum())} of them switches: train the network first")
    weight = torch.stack(((1 - SWITCH_WEIGHT) / (1 - part), SWITCH_WEIGHT / part))
    optimizer = torch.optim.AdamW(encoder.parameters(), LEARNING_RATE, weight_decay=0.05)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        batch = torch.randint(0, count, (BATCH,))
        loss = F.cross_entropy(encoder(*(x[batch] for x in training)), labels[batch], weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    with torch.no_grad():
        switch, should_switch = encoder(*held_out).argmax(1) == 1, held_out_labels == 1
    right, found, wanted = (float(x.sum()) for x in (switch & should_switch, switch, should_switch))
    return {"switches": float(part), "precision": right / max(found, 1), "recall": right / max(wanted, 1)}


def main() -> None:
    name, description = "python -m export.nano.finetune_cme", "fine-tune the conditional memory encoder"
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/nano/run/nano.pth"), help="read and replaced")
    parser.add_argument("--clips", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)  # one sentence at a time is too little work to divide
    try:
        model = load_samwise(args.checkpoint)
        decisions = collect_decisions(model, args.clips, SyntheticDataset(model.config.sam.image_size))
        result = finetune(model, decisions)
    except (UserError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{len(decisions.labels)} decisions", {name: round(value, 3) for name, value in result.items()})
    export_weights(model, args.checkpoint)


if __name__ == "__main__":
    main()
