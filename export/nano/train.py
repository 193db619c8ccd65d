"""Train the nano network on the synthetic dataset.

    python -m export.nano.sprites && python -m export.nano.tokenizer
    python -m export.nano.train                                     # the shipped size: two CPU cores, two hours
    python -m export.nano.train --size large --out build/nano/large --total-minutes 17                        # one GPU

On a CPU several processes train together (`--processes`) and average their gradients. Training time is the budget: the
learning rate and the mix of batches follow the elapsed part of `--total-minutes`, over all calls that resume from
`--out`. `--minutes` ends this call earlier. `last.pth` (weights, averages, optimizer, counters) is replaced every
minute, `log.jsonl` gets one line per report, and at the end `nano.pth` holds the averaged weights in the layout of
official checkpoints, {'model', 'config'}.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch

from ..models.samwise import Samwise
from .auxiliary_heads import build_heads
from .config import SIZES
from .data_parallel import ProcessGroup, reuse_freed_memory
from .trainer import TrainConfig, Trainer


def launch(config: TrainConfig, max_steps: int | None = None, atlas: np.ndarray | None = None) -> None:
    """Train with as many processes as configured."""
    reuse_freed_memory()
    if config.processes == 1:
        return Trainer(config, atlas).run(max_steps)
    network = SIZES[config.size]
    floats = sum(p.numel() for module in (Samwise(network), build_heads(network)) for p in module.parameters())
    group = ProcessGroup(config.processes, floats)

    def work(group: ProcessGroup) -> None:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // group.size))
        Trainer(config, atlas, group).run(max_steps)

    others = group.fork(work)
    work(group)
    for process in others:
        process.join()


def main() -> None:
    d = TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m export.nano.train", description="train the nano network")
    add = parser.add_argument
    add("--out", type=Path, default=d.out, help="folder of the run; resumed if it holds one (default: %(default)s)")
    add("--size", choices=SIZES, default=d.size, help="small for a CPU, large for a GPU (default: %(default)s)")
    add("--total-minutes", type=float, default=d.total_minutes, help="whole budget, over all calls")
    add("--minutes", type=float, default=d.minutes, help="end this call after this time")
    add("--steps", type=int, help="end this call at this step")
    add("--learning-rate", type=float, default=d.learning_rate, help="peak learning rate (default: %(default)s)")
    add("--processes", type=int, default=d.processes, help="processes that train together")
    add("--workers", type=int, default=d.workers, help="processes that draw clips")
    add("--device", default=d.device)
    add("--batch-scale", type=float, default=d.batch_scale, help="batch size as a part of the scheduled one")
    add("--seed", type=int, default=d.seed)
    add("--validation-minutes", type=float, default=d.validation_minutes, help="minutes between validations")
    add("--validation-clips", type=int, default=d.validation_clips, help="clips per validation; 0 for none")
    add("--report-steps", type=int, default=d.report_steps, help="steps between lines of the log")
    add("--profile", action="store_true", help="log milliseconds per step of each batch spec (slower)")
    args = vars(parser.parse_args())
    max_steps = args.pop("steps")
    launch(TrainConfig(**args), max_steps)


if __name__ == "__main__":
    main()
