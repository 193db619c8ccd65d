"""Training loop of the nano network."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..layers.positions import sine_grid
from ..models.samwise import Samwise
from . import checkpointing, losses, scores, sprites
from .auxiliary_heads import build_heads
from .config import SIZES
from .data_parallel import ProcessGroup
from .dataset import SyntheticClip, SyntheticDataset
from .evaluate import EvaluationOptions, evaluate, select_clips
from .loader import Batch, BatchSpec, Loader
from .objectives import Objectives
from .optimizer import MuonAdamW, WeightAverage, update_cost
from .sampling_schedule import SCHEDULES


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Configuration of a run; source of the command's defaults."""

    out: Path = Path("build/nano/run")
    size: str = "small"
    total_minutes: float = 110.0
    minutes: float = 1e9
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.04
    average_decay: float = 0.997
    seed: int = 0
    workers: int = max(1, (os.cpu_count() or 2) - 2) if torch.cuda.is_available() else 0
    """Processes that only draw clips; 0: each training process draws its own."""
    processes: int = 1 if torch.cuda.is_available() else 4
    """Processes that train together."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    batch_scale: float = 1.0
    """Clips per batch as a part of the number in the schedule."""
    profile: bool = False
    """Synchronise the device after each step and log milliseconds per batch spec."""
    validation_minutes: float = 10.0
    """Minutes between validations."""
    validation_clips: int = 24
    report_steps: int = 50


class Trainer:
    """One process of a run; rank 0 also writes the log and the files."""

    def __init__(self, config: TrainConfig, atlas: np.ndarray | None = None, group: ProcessGroup | None = None) -> None:
        self.config, self.group = config, group or ProcessGroup()
        torch.manual_seed(config.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        self.device = torch.device(config.device)
        self.on_gpu = self.device.type == "cuda"
        self.schedule, network = SCHEDULES[config.size], SIZES[config.size]
        self.batches = [replace(b, clips=max(1, round(b.clips * config.batch_scale))) for b in self.schedule.batches]
        atlas = sprites.load() if atlas is None else atlas
        ahead, size = 6 if self.on_gpu else 2, network.sam.image_size
        self.loader = Loader(config.workers, ahead, size, atlas)  # forks before the device is used
        self.model = Samwise(network).to(self.device)
        initialize(self.model)
        self.heads = build_heads(network).to(self.device)
        self._build_optimizer()
        self.step, self.elapsed, self.samples_drawn = 0, 0.0, dict.fromkeys((b.name for b in self.batches), 0)
        self.generator = torch.Generator(device=self.device).manual_seed(config.seed + 1000 * self.group.rank)
        self.rng = np.random.default_rng(config.seed)
        self.objectives = Objectives(self.model, self.heads, self.generator, self.rng)
        self.validation_clips: list[SyntheticClip] = []
        self.pending: list[dict[str, Tensor]] = []
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
        began = time.monotonic()
        self.objectives.progress = self.progress()
        with torch.autocast(self.device.type, torch.bfloat16):
            parts = self.objectives.losses(batch)
            loss = sum(losses.total(part) for part in parts.values())
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
        if self.config.profile and self.on_gpu:
            torch.cuda.synchronize()
            parts["time"] = {"_ms": torch.tensor(1000 * (time.monotonic() - began))}
        entry = {f"{batch.spec.name}.{part}.{name}": v.detach() for part, vs in parts.items() for name, v in vs.items()}
        self.pending.append(entry | {"norm": norm})

    def progress(self) -> float:
        """Return the elapsed part of the whole budget."""
        return min(1.0, self.elapsed / (60 * self.config.total_minutes))

    def learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / self.config.warmup)
        return self.config.learning_rate * warmup * (0.5 * (1 + math.cos(math.pi * self.progress())) * 0.995 + 0.005)

    def choose_batch(self) -> BatchSpec:
        return self.batches[int(self.rng.choice(len(self.batches), p=self.schedule.probabilities(self.progress())))]

    def request(self) -> None:
        """Request a random batch; the processes share the indices of each batch spec."""
        spec = self.choose_batch()
        self.loader.request(spec, self.samples_drawn[spec.name] * self.group.size + self.group.rank)
        self.samples_drawn[spec.name] += 1

    def run(self, max_steps: int | None = None) -> None:
        """Train until the budget, the minutes of this call or `max_steps` are reached; then report, save and export."""
        try:
            waited = self._train(max_steps)
        finally:
            self.loader.close()
        self.report(waited)
        self.save()
        if self.group.rank == 0:
            checkpointing.export_weights(self.averaged(), self.config.out / "nano.pth")
        if self.config.validation_clips:
            self.validate()

    def _train(self, max_steps: int | None) -> float:
        """Make the steps of `run`. Returns the seconds spent waiting for batches since the last report."""
        config, clock, waited = self.config, time.monotonic(), 0.0
        started = saved = validated = self.elapsed
        for _ in range(self.loader.ahead):
            self.request()
        while self.progress() < 1 and self.elapsed - started < 60 * config.minutes:
            before = time.monotonic()
            batch = self.loader.next()
            waited += time.monotonic() - before
            self.learn(batch)
            self.request()
            now = time.monotonic()
            self.elapsed, clock = self.group.end_step(self.elapsed + now - clock), now
            if self.step % config.report_steps == 0:
                self.report(waited)
                waited = 0.0
            if self.elapsed - saved > 60:
                self.save()
                saved = self.elapsed
            if config.validation_clips and self.elapsed - validated > 60 * config.validation_minutes:
                validated = self.elapsed
                self.validate()
            if max_steps is not None and self.step >= max_steps:
                break
        return waited

    def report(self, waited: float) -> None:
        """Log the means since the last report. Raises SystemExit if the loss is not finite."""
        pending, self.pending = self.pending, []
        if self.group.rank or not pending:
            return
        values: dict[str, list[float]] = {}
        for entry in pending:
            for name, value in entry.items():
                values.setdefault(name, []).append(float(value))
        means = {name: round(sum(v) / len(v), 4) for name, v in sorted(values.items())}
        self._log(learning_rate=round(self.learning_rate(), 6), waited=round(waited, 2), **means)
        if not all(math.isfinite(v) for v in means.values()):
            raise SystemExit("the loss is not finite; resume with a smaller --learning-rate")

    def _log(self, **entry: Any) -> None:
        line = json.dumps({"step": self.step, "elapsed": round(self.elapsed, 1), **entry})
        with open(self.config.out / "log.jsonl", "a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def validate(self) -> None:
        """Log J of the averaged weights on validation clips, per kind of sentence and with a click; export the
        weights."""
        model = self.averaged()
        options = EvaluationOptions(split="val", clips=self.config.validation_clips, boundary=False)
        if not self.validation_clips:
            dataset = SyntheticDataset(model.config.sam.image_size, self.loader.atlas)
            self.validation_clips = select_clips(options, dataset)[self.group.rank :: self.group.size]
        text, click = (
            self.group.gather(evaluate(model, replace(options, prompt=prompt), self.validation_clips))
            for prompt in ("text", "click")
        )
        if self.group.rank == 0:
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
            state |= {
                "model": checkpointing.cloned_state(self.model),
                "heads": checkpointing.cloned_state(self.heads),
                "average": {name: value.clone() for name, value in self.average.values.items()},
                "step": self.step,
                "elapsed": self.elapsed,
                "samples_drawn": self.samples_drawn,
                "generator": self.generator.get_state(),
                "rng": self.rng.bit_generator.state,
                "processes": self.group.size,
            }
        checkpointing.write_state(state, self.config.out, self.group.rank)

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
    for adapter in model.cmt_adapters:
        # as large as the features that they are added to: with smaller ones no motion is learned for a thousand steps
        adapter.spatial_pos_embed.data[0, 0, 0] = 0.5 * sine_grid(adapter.patch, adapter.spatial_pos_embed.shape[-1])
    for name, p in model.named_parameters():
        if p.ndim == 2 and ("trunk.blocks" in name or "sentence_encoder.layers" in name) and name.endswith("weight"):
            nn.init.trunc_normal_(p, std=0.02 if "sentence" in name else min(0.05, p.shape[1] ** -0.5))
