"""Train the nano network on the procedural world.

    python -m export.nano.sprites && python -m export.nano.tokenizer
    python -m export.nano.train                                     # what ships: two CPU cores, two hours
    python -m export.nano.train --size large --out build/nano/large --total-minutes 17                        # one GPU

On a CPU several processes train together (`--processes`) and average their gradients. Training time is the budget: the learning
rate and the mix of batches follow the part of `--total-minutes` that is spent, over all calls that resume from `--out`.
`--minutes` ends this call earlier. Every minute `last.pth` (weights, averages,
optimizer, counters) is replaced; `log.jsonl` has one line per report; at the end `nano.pth` holds the averaged weights in the
layout of official checkpoints, {'model', 'config'}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..layers.positions import sine_grid
from ..models.samwise import Samwise
from . import losses, scores, sprites
from .auxiliary_heads import build_heads
from .config import SIZES, nano_config, to_dict
from .data_parallel import ProcessGroup, reuse_freed_memory
from .dataset import SyntheticDataset
from .evaluate import EvaluationOptions, clips_of, evaluate
from .loader import Batch, BatchSpec, Loader
from .objectives import Objectives
from .optimizer import MuonAdamW, cost
from .sampling_schedule import SCHEDULES


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """All that shapes a run. CLI defaults are read from here."""

    out: Path = Path("build/nano/run")
    size: str = "small"
    total_minutes: float = 110.0
    minutes: float = 1e9
    rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.04
    average: float = 0.997
    seed: int = 0
    workers: int = max(1, (os.cpu_count() or 2) - 2) if torch.cuda.is_available() else 0
    """Processes that only draw clips; 0: each training process draws its own."""
    processes: int = 1 if torch.cuda.is_available() else 4
    """Processes that train together."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    scale: float = 1.0
    """Clips per batch as a part of the recipe's."""
    profile: bool = False
    """Wait for the device after each step and log milliseconds per stream."""
    validate: float = 10.0
    """Minutes between validations."""
    validation_clips: int = 24
    report: int = 50


class Trainer:
    """One of the processes of a run; rank 0 also keeps the log and the files."""

    def __init__(
        self, settings: TrainConfig, atlas: np.ndarray | None = None, peers: ProcessGroup | None = None
    ) -> None:
        self.s, self.peers = settings, peers or ProcessGroup()
        torch.manual_seed(settings.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        self.device = torch.device(settings.device)
        self.gpu = self.device.type == "cuda"
        self.half = True
        recipe, self.config = SCHEDULES[settings.size], nano_config(settings.size)
        self.recipe = recipe
        self.streams = [replace(x, clips=max(1, round(x.clips * settings.scale))) for x in recipe.streams]
        # the workers fork before the device is touched
        self.loader = Loader(
            self.streams,
            settings.workers,
            ahead=6 if self.gpu else 2,
            size=self.config.sam.image_size,
            atlas=sprites.load() if atlas is None else atlas,
        )
        self.model = Samwise(self.config).to(self.device)
        initialize(self.model)
        self.heads = build_heads(self.config).to(self.device)
        named = [*self.model.named_parameters(), *self.heads.named_parameters()]
        self.parameters = [p for _, p in named]
        self.owned = self.peers.share(self.parameters, [cost(name, p) for name, p in named])
        self.optimizer = MuonAdamW(
            [pair for pair, mine in zip(named, self.owned) if mine], settings.rate, settings.decay
        )
        mine = {name for (name, _), own in zip(named, self.owned) if own}
        self.average = {
            k: v.detach().clone().float() for k, v in self.model.state_dict().items() if v.is_floating_point()
        }
        self.average |= {name: self.peers.averages_of(p) for name, p in self.model.named_parameters()}
        weights = {name for name, _ in self.model.named_parameters()}
        self.averaging = [n for n in self.average if n in mine or (n not in weights and self.peers.rank == 0)]
        self.step, self.spent, self.taken = 0, 0.0, dict.fromkeys((x.name for x in self.streams), 0)
        self.random = torch.Generator(device=self.device).manual_seed(settings.seed + 1000 * self.peers.rank)
        self.draw = np.random.default_rng(settings.seed)
        self.lessons = Objectives(self.model, self.heads, self.random, self.draw)
        self.clips: list = []
        self.pending: list[dict[str, Tensor]] = []
        settings.out.mkdir(parents=True, exist_ok=True)
        if (settings.out / "last.pth").is_file():
            self._resume(settings.out / "last.pth")

    # ---- one step -------------------------------------------------------------------------------------------------

    def learn(self, batch: Batch) -> None:
        """One optimizer step on one batch."""
        began = time.monotonic()
        self.lessons.fraction = self.fraction()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            parts = self.lessons.of(batch)
            loss = sum(losses.total(part) for part in parts.values())
        for p in self.parameters:
            p.grad = None
        loss.backward()
        self.peers.reduce(self.parameters, self.owned)
        norm = torch.nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self._average()
        self.step += 1
        if self.s.profile and self.gpu:
            torch.cuda.synchronize()
            parts["time"] = {"_ms": torch.tensor(1000 * (time.monotonic() - began))}
        self.pending.append(
            {
                f"{batch.stream.name}.{part}.{name}": value.detach()
                for part, values in parts.items()
                for name, value in values.items()
            }
            | {"norm": norm}
        )

    # ---- schedule -------------------------------------------------------------------------------------------------

    def fraction(self) -> float:
        """Part of the whole budget that is spent."""
        return min(1.0, self.spent / (60 * self.s.total_minutes))

    def rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.s.warmup)
        return self.s.rate * warm * (0.5 * (1 + math.cos(math.pi * self.fraction())) * 0.995 + 0.005)

    def _average(self) -> None:
        """Exponential mean of weights and batch-norm statistics; quick at first, so that early weights are forgotten."""
        weight = 1 - min(self.s.average, (1 + self.step) / (20 + self.step))
        state = self.model.state_dict()
        torch._foreach_lerp_(
            [self.average[n] for n in self.averaging], [state[n].float() for n in self.averaging], weight
        )

    def choose(self) -> BatchSpec:
        return self.streams[int(self.draw.choice(len(self.streams), p=self.recipe.weights(self.fraction())))]

    def request(self, loader: Loader) -> None:
        stream = self.choose()
        loader.request(stream, self.taken[stream.name] * self.peers.count + self.peers.rank)
        self.taken[stream.name] += 1

    # ---- the run --------------------------------------------------------------------------------------------------

    def run(self, max_steps: int | None = None) -> None:
        loader = self.loader
        clock = time.monotonic()
        started = saved = validated = self.spent
        waited = 0.0
        try:
            for _ in range(loader.ahead):
                self.request(loader)
            while self.fraction() < 1 and self.spent - started < 60 * self.s.minutes:
                before = time.monotonic()
                batch = loader.next()
                waited += time.monotonic() - before
                self.learn(batch)
                self.request(loader)
                now = time.monotonic()
                self.spent, clock = self.peers.finish(self.spent + now - clock), now
                if self.step % self.s.report == 0:
                    self.report(waited)
                    waited = 0.0
                if self.spent - saved > 60:
                    self.save()
                    saved = self.spent
                if self.s.validation_clips and self.spent - validated > 60 * self.s.validate:
                    validated = self.spent
                    self.validate()
                if max_steps is not None and self.step >= max_steps:
                    break
        finally:
            loader.close()
        self.report(waited)
        self.save()
        if self.peers.rank == 0:
            self.export(self.s.out / "nano.pth")
        if self.s.validation_clips:
            self.validate()

    def report(self, waited: float = 0.0) -> None:
        if not self.pending:
            return None
        if self.peers.rank:
            return self.pending.clear()
        sums: dict[str, list[float]] = {}
        for entry in self.pending:
            for name, value in entry.items():
                sums.setdefault(name, []).append(float(value))
        self.pending.clear()
        means = {name: round(sum(values) / len(values), 4) for name, values in sorted(sums.items())}
        self.log(
            step=self.step, spent=round(self.spent, 1), rate=round(self.rate(), 6), waited=round(waited, 2), **means
        )
        if not all(math.isfinite(v) for v in means.values()):
            raise SystemExit("the loss is no longer a number; resume with a smaller --rate")

    def log(self, **entry) -> None:
        line = json.dumps(entry)
        with open(self.s.out / "log.jsonl", "a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def validate(self) -> None:
        """J of the averaged weights on validation clips, per kind of sentence, and with a click."""
        model = self.averaged()
        options = EvaluationOptions(split="val", clips=self.s.validation_clips, boundary=False)
        part = slice(self.peers.rank, None, self.peers.count)
        self.clips = (
            self.clips or clips_of(options, SyntheticDataset(self.config.sam.image_size, self.loader.atlas))[part]
        )
        rows = scores.table(self.peers.gather(evaluate(model, options, self.clips)))
        click = scores.summarize(self.peers.gather(evaluate(model, replace(options, prompt="click"), self.clips)))
        if self.peers.rank:
            return
        self.export(self.s.out / "nano.pth")
        self.log(
            step=self.step,
            spent=round(self.spent, 1),
            validation={k: v.get("J") for k, v in rows.items()},
            click=click.get("J"),
        )

    def averaged(self) -> Samwise:
        model = Samwise(self.config).to(self.device)
        model.load_state_dict({**self.model.state_dict(), **self.average})
        return model.eval()

    def export(self, path: Path) -> None:
        """The averaged weights in the layout of official checkpoints: matrices in half precision, vectors in single."""
        state = {
            name: value.cpu().half() if value.is_floating_point() and value.ndim >= 2 else value.cpu()
            for name, value in self.averaged().state_dict().items()
        }
        write({"model": state, "config": to_dict(self.config)}, path)

    def save(self) -> None:
        """Rank 0 keeps everything, the others what only they know: the optimizer's state of their weights."""
        if self.peers.rank:
            return write({"optimizer": self.optimizer.state_dict()}, self._file())
        # copies: a view would take the whole shared memory with it into the file
        weights = {
            name: {k: v.detach().clone() for k, v in state.items()}
            for name, state in (
                ("model", self.model.state_dict()),
                ("heads", self.heads.state_dict()),
                ("average", self.average),
            )
        }
        write(
            {
                **weights,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "spent": self.spent,
                "taken": self.taken,
                "random": self.random.get_state(),
                "draw": self.draw.bit_generator.state,
                "processes": self.peers.count,
            },
            self._file(),
        )

    def _file(self) -> Path:
        return self.s.out / (f"last.{self.peers.rank}.pth" if self.peers.rank else "last.pth")

    def _resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["processes"] != self.peers.count:
            raise SystemExit(
                f"{path}: the run had {state['processes']} processes; resume it with as many (--processes)"
            )
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        own = state if self.peers.rank == 0 else torch.load(self._file(), map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(own["optimizer"])
        self.step, self.spent = state["step"], state["spent"]
        self.taken |= state["taken"]
        self.draw.bit_generator.state = state["draw"]
        if self.peers.rank == 0:
            self.random.set_state(state["random"].cpu())
            self.log(resumed=str(path.name), step=self.step, spent=round(self.spent, 1))


def initialize(model: Samwise) -> None:
    """Starting values that the modules leave to torch's defaults and that matter when nothing is pretrained."""
    for adapter in model.cmt_adapters:
        # as strong as the features that they are added to, or no motion is seen for a thousand steps
        adapter.spatial_pos_embed.data[0, 0, 0] = 0.5 * sine_grid(adapter.patch, adapter.spatial_pos_embed.shape[-1])
    for name, p in model.named_parameters():
        if p.ndim == 2 and ("trunk.blocks" in name or "sentence_encoder.layers" in name) and name.endswith("weight"):
            torch.nn.init.trunc_normal_(p, std=0.02 if "sentence" in name else min(0.05, p.shape[1] ** -0.5))


def write(data: dict, path: Path) -> None:
    """Save so that a reader never meets half a file."""
    part = path.with_suffix(".part")
    torch.save(data, part)
    os.replace(part, path)


def main() -> None:
    d = TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m export.nano.train", description="train the nano network")
    parser.add_argument("--out", type=Path, default=d.out, help="folder of the run; resumes what it finds there")
    parser.add_argument("--size", choices=SIZES, default=d.size, help="small for a CPU, large for a GPU")
    parser.add_argument("--total-minutes", type=float, default=d.total_minutes, help="whole budget, over all calls")
    parser.add_argument("--minutes", type=float, default=d.minutes, help="end this call after so long")
    parser.add_argument("--steps", type=int, help="end this call at this step")
    parser.add_argument("--rate", type=float, default=d.rate, help="peak learning rate (default %(default)s)")
    parser.add_argument("--processes", type=int, default=d.processes, help="processes that train together")
    parser.add_argument("--workers", type=int, default=d.workers, help="processes that draw clips")
    parser.add_argument("--device", default=d.device)
    parser.add_argument("--scale", type=float, default=d.scale, help="batch size as a part of the full one")
    parser.add_argument("--seed", type=int, default=d.seed)
    parser.add_argument("--validate", type=float, default=d.validate, help="minutes between validations")
    parser.add_argument("--validation-clips", type=int, default=d.validation_clips)
    parser.add_argument("--report", type=int, default=d.report, help="steps between lines of the log")
    parser.add_argument("--profile", action="store_true", help="log milliseconds per step of each stream (slower)")
    args = vars(parser.parse_args())
    steps = args.pop("steps")
    launch(TrainConfig(**args), steps)


def launch(settings: TrainConfig, steps: int | None = None, atlas: np.ndarray | None = None) -> None:
    """Train with as many processes as the settings say."""
    reuse_freed_memory()
    if settings.processes == 1:
        return Trainer(settings, atlas).run(steps)
    config = nano_config(settings.size)
    sizes = [p.numel() for module in (Samwise(config), build_heads(config)) for p in module.parameters()]
    peers = ProcessGroup(settings.processes, sum(sizes))

    def work(peers: ProcessGroup) -> None:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // peers.count))
        Trainer(settings, atlas, peers).run(steps)

    others = peers.start(work)
    work(peers)
    for process in others:
        process.join()


if __name__ == "__main__":
    main()
