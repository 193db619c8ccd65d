"""Train the nano network on the synthetic dataset.

    python -m export.nano.sprites && python -m export.nano.tokenizer
    python -m export.nano.train                                     # the shipped size: two CPU cores, two hours
    python -m export.nano.train --size large --out build/nano/large --total-minutes 17                        # one GPU

Training time is the budget: the learning rate and the mix of batches follow the elapsed part of `--total-minutes`, over
all calls that resume from `--out`. `last.pth` (weights, averages, optimizer, counters) is replaced every minute,
`log.jsonl` gets one line per report, and at the end `nano.pth` holds the averaged weights in the layout of official
checkpoints, {'model', 'config'}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from ..layers.positions import sine_grid
from ..models.samwise import Samwise
from ..stages.cross_modal_adapter import Adapter
from . import checkpointing, objectives, scores, sprites
from .auxiliary_heads import build_heads
from .config import SCHEDULES, SIZES
from .data_parallel import ProcessGroup, reuse_freed_memory
from .dataset import SyntheticClip, test_clips
from .evaluate import evaluate
from .loader import Batch, Loader
from .optimizer import MuonAdamW, WeightAverage, update_cost

HAS_GPU = torch.cuda.is_available()


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Configuration of a run; each field is an option of the command, with this help."""

    out: Annotated[Path, "folder of the run; resumed if it holds one"] = Path("build/nano/run")
    size: Annotated[str, "small for a CPU, large for a GPU"] = "small"
    total_minutes: Annotated[float, "whole budget, over all calls"] = 110.0
    minutes: Annotated[float, "end this call after this time"] = 1e9
    steps: Annotated[int, "end this call at this step"] = 10**9
    learning_rate: Annotated[float, "peak learning rate"] = 2e-3
    warmup: Annotated[int, "steps of rising learning rate"] = 100
    weight_decay: Annotated[float, "weight decay of matrices"] = 0.04
    average_decay: Annotated[float, "decay of the averaged weights per step"] = 0.997
    seed: Annotated[int, "seed of weights and batches"] = 0
    processes: Annotated[int, "processes that train together"] = 1 if HAS_GPU else 4
    workers: Annotated[int, "processes that only draw clips"] = max(1, (os.cpu_count() or 2) - 2) if HAS_GPU else 0
    device: Annotated[str, "device of torch"] = "cuda" if HAS_GPU else "cpu"
    validation_minutes: Annotated[float, "minutes between validations"] = 10.0
    validation_clips: Annotated[int, "clips per validation; 0 for none"] = 24
    report_steps: Annotated[int, "steps between lines of the log"] = 50


class Trainer:
    """One process of a run; rank 0 also writes the log and the files."""

    def __init__(self, config: TrainConfig, group: ProcessGroup | None = None) -> None:
        self.config, self.group = config, group or ProcessGroup()
        torch.manual_seed(config.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        self.device = torch.device(config.device)
        self.schedule, network = SCHEDULES[config.size], SIZES[config.size]
        ahead = 6 if self.device.type == "cuda" else 2
        self.loader = Loader(config.workers, ahead, network.sam.image_size)  # forks before the device is used
        self.model = Samwise(network).to(self.device)
        initialize(self.model)
        self.heads = build_heads(network).to(self.device)
        self._build_optimizer()
        self.step, self.elapsed, self.samples_drawn = 0, 0.0, dict.fromkeys((b.name for b in self.schedule.batches), 0)
        self.generator = torch.Generator(device=self.device).manual_seed(config.seed + 1000 * self.group.rank)
        self.rng = np.random.default_rng(config.seed)
        self.objectives = objectives.Objectives(self.model, self.heads, self.generator, self.rng)
        self.validation_clips: list[SyntheticClip] = []
        self.pending: list[dict[str, Tensor]] = []
        self.waited = 0.0
        config.out.mkdir(parents=True, exist_ok=True)
        if checkpointing.state_path(config.out).is_file():
            self._resume()

    def _build_optimizer(self) -> None:
        """Divide the parameters among the processes; optimize and average those that this one owns."""
        named = [*self.model.named_parameters(), *self.heads.named_parameters()]
        self.parameters = [p for _, p in named]
        self.owned = self.group.shard(self.parameters, [update_cost(name, p) for name, p in named])
        mine = [pair for pair, is_owned in zip(named, self.owned, strict=True) if is_owned]
        self.optimizer = MuonAdamW(mine, self.config.learning_rate, self.config.weight_decay)
        self.average = WeightAverage(self.model, self.config.average_decay, self.group, {name for name, _ in mine})

    def learn(self, batch: Batch) -> None:
        """Make one optimizer step on one batch."""
        self.objectives.progress = self.progress()
        with torch.autocast(self.device.type, torch.bfloat16):
            parts = self.objectives.losses(batch)
            loss = sum(map(objectives.total, parts.values()), torch.zeros(()))
        for p in self.parameters:
            p.grad = None
        loss.backward()
        self.group.reduce_gradients(self.parameters, self.owned)
        norm = nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.average.update(self.step)
        self.step += 1
        entry = {f"{batch.spec.name}.{part}.{name}": v.detach() for part, vs in parts.items() for name, v in vs.items()}
        self.pending.append(entry | {"norm": norm})

    def progress(self) -> float:
        """Return the elapsed part of the whole budget."""
        return min(1.0, self.elapsed / (60 * self.config.total_minutes))

    def learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / self.config.warmup)
        return self.config.learning_rate * warmup * (0.5 * (1 + math.cos(math.pi * self.progress())) * 0.995 + 0.005)

    def request(self) -> None:
        """Request a random batch; the processes share the indices of each batch spec."""
        batches, mix = self.schedule.batches, self.schedule.probabilities(self.progress())
        spec = batches[int(self.rng.choice(len(batches), p=mix))]
        self.loader.request(spec, self.samples_drawn[spec.name] * self.group.size + self.group.rank)
        self.samples_drawn[spec.name] += 1

    def run(self) -> None:
        """Train until the budget, or the minutes or steps of this call, are reached; then report, save and export."""
        try:
            self._train()
        finally:
            self.loader.close()
        self.report()
        self.save()
        if self.group.rank == 0:
            checkpointing.export_weights(self.averaged(), self.config.out / "nano.pth")
        if self.config.validation_clips:
            self.validate()

    def _train(self) -> None:
        config, clock = self.config, time.monotonic()
        started = saved = validated = self.elapsed
        for _ in range(self.loader.ahead):
            self.request()
        while self.progress() < 1 and self.elapsed - started < 60 * config.minutes:
            before = time.monotonic()
            batch = self.loader.next()
            self.waited += time.monotonic() - before
            self.learn(batch)
            self.request()
            now = time.monotonic()
            self.elapsed, clock = self.group.end_step(self.elapsed + now - clock), now
            if self.step % config.report_steps == 0:
                self.report()
            if self.elapsed - saved > 60:
                self.save()
                saved = self.elapsed
            if config.validation_clips and self.elapsed - validated > 60 * config.validation_minutes:
                validated = self.elapsed
                self.validate()
            if self.step >= config.steps:
                break

    def report(self) -> None:
        """Log the means, and the seconds of waiting for batches, since the last report. Raises SystemExit if the loss
        is not finite."""
        pending, waited, self.pending, self.waited = self.pending, self.waited, [], 0.0
        if self.group.rank or not pending:
            return
        values = {name: [float(x[name]) for x in pending if name in x] for name in sorted(set().union(*pending))}
        means = {name: round(sum(v) / len(v), 4) for name, v in values.items()}
        self._log(learning_rate=round(self.learning_rate(), 6), waited=round(waited, 2), **means)
        if not all(math.isfinite(v) for v in means.values()):
            raise SystemExit("the loss is not finite; resume with a smaller --learning-rate")

    def _log(self, **entry: Any) -> None:
        line = json.dumps({"step": self.step, "elapsed": round(self.elapsed, 1), **entry})
        with open(self.config.out / "log.jsonl", "a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def validate(self) -> None:
        """Log J of the averaged weights on validation clips, per kind of sentence and with a click; export them."""
        model, group = self.averaged(), self.group
        if not self.validation_clips:
            clips = list(test_clips(self.loader.dataset, self.config.validation_clips, "val"))
            self.validation_clips = clips[group.rank :: group.size]
        text, click = (group.gather(evaluate(model, self.validation_clips, prompt)) for prompt in ("text", "click"))
        if group.rank == 0:
            checkpointing.export_weights(model, self.config.out / "nano.pth")
            rows = {kind: row.get("J") for kind, row in scores.table(text).items()}
            self._log(validation=rows, click=scores.summarize(click).get("J"))

    def averaged(self) -> Samwise:
        """Build a copy of the network with averaged weights, in evaluation mode."""
        model = Samwise(self.model.config).to(self.device)
        model.load_state_dict({**self.model.state_dict(), **self.average.values})
        return model.eval()

    def save(self) -> None:
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.group.rank == 0:
            state |= {"format": checkpointing.FORMAT, "processes": self.group.size}
            state |= {"step": self.step, "elapsed": self.elapsed, "samples_drawn": self.samples_drawn}
            state |= {"generator": self.generator.get_state(), "rng": self.rng.bit_generator.state}
            state |= {name: checkpointing.cloned_state(getattr(self, name)) for name in ("model", "heads")}
            state["average"] = {name: value.clone() for name, value in self.average.values.items()}
        checkpointing.write_atomic(state, checkpointing.state_path(self.config.out, self.group.rank))

    def _resume(self) -> None:
        state = checkpointing.read_state(self.config.out, self.group.rank, self.group.size, self.device)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.average.load(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.samples_drawn |= state["samples_drawn"]
        self.rng.bit_generator.state = state["rng"]
        if self.group.rank == 0:
            self.generator.set_state(state["generator"].cpu())
            self._log(resumed=checkpointing.state_path(self.config.out).name)


def initialize(model: Samwise) -> None:
    """Set initial values that matter without pretraining and that the modules leave to torch's defaults."""
    for adapter in (cast(Adapter, module) for module in model.cmt_adapters):
        # as large as the features that they are added to: with smaller ones no motion is learned for a thousand steps
        positions = adapter.spatial_pos_embed
        positions.data[0, 0, 0] = 0.5 * sine_grid(adapter.patch, positions.shape[-1])
    for name, p in model.named_parameters():
        if p.ndim == 2 and ("trunk.blocks" in name or "sentence_encoder.layers" in name) and name.endswith("weight"):
            nn.init.trunc_normal_(p, std=0.02 if "sentence" in name else min(0.05, p.shape[1] ** -0.5))


def launch(config: TrainConfig) -> None:
    """Train with as many processes as configured. Raises FileNotFoundError without the sprites."""
    sprites.load()  # once for all processes
    reuse_freed_memory()
    if config.processes == 1:
        return Trainer(config).run()
    network = SIZES[config.size]
    floats = sum(p.numel() for module in (Samwise(network), build_heads(network)) for p in module.parameters())

    def work(group: ProcessGroup) -> None:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // group.size))
        Trainer(config, group).run()

    group = ProcessGroup(config.processes, floats)
    others = group.fork(work)
    work(group)
    for process in others:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.nano.train", description="train the nano network")
    hints = get_type_hints(TrainConfig, include_extras=True)
    for f in fields(TrainConfig):
        option, hint, choices = "--" + f.name.replace("_", "-"), hints[f.name], SIZES if f.name == "size" else None
        text = f"{hint.__metadata__[0]} (default: %(default)s)"
        parser.add_argument(option, type=hint.__origin__, default=f.default, choices=choices, help=text)
    try:
        launch(TrainConfig(**vars(parser.parse_args())))
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
