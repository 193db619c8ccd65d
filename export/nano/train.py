"""Train the nano network on the procedural world.

    python -m export.nano.sprites && python -m export.nano.tokenizer
    python -m export.nano.train --out build/nano/run --total-minutes 17            # one GPU
    python -m export.nano.train --out build/nano/run --total-minutes 600           # CPU: smaller batches by itself

Training time is the budget: the learning rate and the mix of batches follow the part of `--total-minutes` that is spent,
over all calls that resume from `--out`. `--minutes` ends this call earlier. Every minute `last.pth` (weights, averages,
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

from ..models.samwise import Samwise
from . import losses, prompts, scores, sprites
from .config import nano_config, to_dict
from .data import Batch, Loader, Stream
from .evaluate import Options, clips_of, evaluate
from .network import Policy, encode, memoryless, normalize, track

STREAMS = (
    Stream("image", 1, 128, 5), Stream("clip", 8, 32, 3), Stream("long16", 16, 20, 2), Stream("long12", 12, 24, 2),
    Stream("visual", 8, 24, 2, visual=True), Stream("visual_image", 1, 128, 2, visual=True),
)
# part of the steps per stream at the given part of the budget; between two rows the mix changes linearly
MIX = ((0.0, (0.75, 0.0, 0.0, 0.0, 0.0, 0.25)), (0.06, (0.75, 0.10, 0.0, 0.0, 0.0, 0.15)),
       (0.18, (0.40, 0.44, 0.0, 0.0, 0.08, 0.08)), (0.4, (0.18, 0.52, 0.08, 0.06, 0.13, 0.03)),
       (1.0, (0.10, 0.42, 0.20, 0.12, 0.14, 0.02)))


@dataclass(frozen=True, slots=True)
class Settings:
    """All that shapes a run. CLI defaults are read from here."""

    out: Path = Path("build/nano/run")
    total_minutes: float = 17.0
    minutes: float = 1e9
    rate: float = 1e-3
    warmup: int = 200
    decay: float = 0.04
    average: float = 0.999
    seed: int = 0
    workers: int = max(1, (os.cpu_count() or 2) - 2)
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    scale: float = 0.0
    """Clips per batch as a part of `STREAMS`; 0 is 1 on a GPU and 1/16 on a CPU."""
    profile: bool = False
    """Wait for the device after each step and log milliseconds per stream."""
    validate: float = 4.0
    """Minutes between validations."""
    validation_clips: int = 24
    report: int = 50


class Trainer:
    def __init__(self, settings: Settings, atlas: np.ndarray | None = None) -> None:
        self.s = settings
        torch.manual_seed(settings.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
        self.device = torch.device(settings.device)
        self.gpu = self.half = self.device.type == "cuda"
        scale = settings.scale or (1.0 if self.gpu else 1 / 16)
        self.streams = [replace(x, clips=max(2, round(x.clips * scale))) for x in STREAMS]
        # the workers fork before the device is touched
        self.loader = Loader(self.streams, settings.workers, ahead=6 if self.gpu else 3,
                             atlas=sprites.load() if atlas is None else atlas)
        self.model = Samwise(nano_config()).to(self.device)
        initialize(self.model)
        self.looks = losses.LooksHead(self.model.config.sam.width).to(self.device)
        self.average = {k: v.detach().clone().float() for k, v in self.model.state_dict().items() if v.is_floating_point()}
        self.optimizer = self._optimizer()
        self.step, self.spent, self.taken = 0, 0.0, dict.fromkeys((x.name for x in self.streams), 0)
        self.random = torch.Generator(device=self.device).manual_seed(settings.seed)
        self.draw = np.random.default_rng(settings.seed)
        self.clips: list = []
        self.pending: list[dict[str, Tensor]] = []
        settings.out.mkdir(parents=True, exist_ok=True)
        if (settings.out / "last.pth").is_file():
            self._resume(settings.out / "last.pth")

    def _optimizer(self) -> torch.optim.Optimizer:
        everything = [*self.model.parameters(), *self.looks.parameters()]
        matrices, vectors = ([p for p in everything if (p.ndim >= 2) == many] for many in (True, False))
        return torch.optim.AdamW([{"params": matrices, "weight_decay": self.s.decay}, {"params": vectors, "weight_decay": 0.0}],
                                 lr=self.s.rate, betas=(0.9, 0.98), fused=self.gpu)

    # ---- one step -------------------------------------------------------------------------------------------------

    def learn(self, batch: Batch) -> None:
        """One optimizer step on one batch."""
        owners = torch.from_numpy(batch.owners).to(self.device, non_blocking=True)
        frames = torch.from_numpy(batch.frames).to(self.device, non_blocking=True)
        targets = torch.from_numpy(batch.targets).to(self.device)
        truth = losses.ground_truth(owners, targets)
        began = time.monotonic()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            parts = self._visual(batch, frames, owners, truth) if batch.stream.visual else self._sentences(batch, frames, truth)
            loss = sum(losses.total(part) for part in parts.values())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self._average()
        self.step += 1
        if self.s.profile and self.gpu:
            torch.cuda.synchronize()
            parts["time"] = {"_ms": torch.tensor(1000 * (time.monotonic() - began))}
        self.pending.append({f"{batch.stream.name}.{part}.{name}": value.detach() for part, values in parts.items()
                             for name, value in values.items()} | {"norm": norm})

    def _sentences(self, batch: Batch, frames: Tensor, truth: Tensor) -> dict[str, dict[str, Tensor]]:
        tokens, mask = (torch.from_numpy(x).to(self.device) for x in (batch.tokens, batch.token_mask))
        clip = encode(self.model, normalize(frames), tokens, mask, batch.stream.sentences)
        shape = clip.embedding.shape[:2]
        alone = memoryless(self.model, clip)
        parts = {"alone": losses.frame_losses(alone.low_res_logits.unflatten(0, shape), alone.iou.unflatten(0, shape),
                                              alone.score.unflatten(0, shape), truth)}
        if batch.stream.frames == 1 or self.draw.random() < 0.3 * (1 - min(1.0, 2 * self.fraction())):
            return parts
        # a switch that the decision asks for changes what is remembered in half of the later batches, as it will in use
        acts = self.fraction() > 0.6 and self.draw.random() < 0.5
        tracked = track(self.model, clip, Policy(conditional=True, decide_all=not acts), teach=self._teach(truth))
        parts["tracked"] = losses.frame_losses(tracked.logits, tracked.iou, tracked.score, truth)
        decision = losses.decision_loss(tracked, truth)
        if decision is not None:
            parts["tracked"]["cme"] = decision
        return parts

    def _teach(self, truth: Tensor) -> Tensor:
        """Ground truth to remember instead of the own mask, for a part of the objects that shrinks with time; -1 elsewhere."""
        part = 0.4 * (1 - self.fraction()) + 0.1
        chosen = torch.rand(len(truth), device=self.device, generator=self.random) < part
        return torch.where(chosen[:, None, None, None], truth.to(torch.int8), -1)

    def _visual(self, batch: Batch, frames: Tensor, owners: Tensor, truth: Tensor) -> dict[str, dict[str, Tensor]]:
        clip = encode(self.model, normalize(frames), None, None, batch.stream.sentences)
        modes = torch.randint(0, len(prompts.MODES), (len(truth),), device=self.device, generator=self.random)
        begin = prompts.start(self.model, truth[:, 0], modes, permanent=bool(self.draw.random() < 0.6), generator=self.random,
                              scaled=bool(self.draw.random() < 0.5))
        tokens = tuple(self.draw.choice(4, batch.stream.frames, p=(0.4, 0.2, 0.2, 0.2)).tolist())
        tracked = track(self.model, clip, Policy(tokens=tokens), begin)
        every = [losses.frame_losses(tracked.all_logits[:, :, i], tracked.all_ious[:, :, i], tracked.score, truth)
                 for i in range(4)]
        looks = torch.from_numpy(batch.looks).to(self.device)
        shown = clip.embedding[::batch.stream.sentences, 0]
        return {"tracked": {name: sum(e[name] for e in every) / 4 for name in every[0]},
                "looks": self.looks(shown, owners[:, 0], looks)}

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
        names = list(self.average)
        torch._foreach_lerp_([self.average[n] for n in names], [state[n].float() for n in names], weight)

    def choose(self) -> Stream:
        f = self.fraction()
        for (a, low), (b, high) in zip(MIX, MIX[1:]):
            if f <= b:
                part = (f - a) / (b - a)
                weights = np.array(low) * (1 - part) + np.array(high) * part
                break
        return self.streams[int(self.draw.choice(len(self.streams), p=weights / weights.sum()))]

    def request(self, loader: Loader) -> None:
        stream = self.choose()
        loader.request(stream, self.taken[stream.name])
        self.taken[stream.name] += 1

    # ---- the run --------------------------------------------------------------------------------------------------

    def run(self, max_steps: int | None = None) -> None:
        loader = self.loader
        began = clock = saved = time.monotonic()
        validated = self.spent
        waited = 0.0
        try:
            for _ in range(loader.ahead):
                self.request(loader)
            while self.fraction() < 1 and time.monotonic() - began < 60 * self.s.minutes:
                before = time.monotonic()
                batch = loader.next()
                waited += time.monotonic() - before
                self.learn(batch)
                self.request(loader)
                now = time.monotonic()
                self.spent, clock = self.spent + now - clock, now
                if self.step % self.s.report == 0:
                    self.report(waited)
                    waited = 0.0
                if now - saved > 60:
                    self.save()
                    saved = now
                if self.s.validation_clips and self.spent - validated > 60 * self.s.validate:
                    validated = self.spent
                    self.validate()
                if max_steps is not None and self.step >= max_steps:
                    break
        finally:
            loader.close()
        self.report(waited)
        self.save()
        self.export(self.s.out / "nano.pth")
        if self.s.validation_clips:
            self.validate()

    def report(self, waited: float = 0.0) -> None:
        if not self.pending:
            return
        sums: dict[str, list[float]] = {}
        for entry in self.pending:
            for name, value in entry.items():
                sums.setdefault(name, []).append(float(value))
        self.pending.clear()
        means = {name: round(sum(values) / len(values), 4) for name, values in sorted(sums.items())}
        self.log(step=self.step, spent=round(self.spent, 1), rate=round(self.rate(), 6), waited=round(waited, 2), **means)
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
        options = Options(split="val", clips=self.s.validation_clips, boundary=False)
        self.clips = self.clips or clips_of(options)
        rows = scores.table(evaluate(model, options, self.clips))
        click = scores.line(evaluate(model, replace(options, prompt="click"), self.clips))
        self.log(step=self.step, spent=round(self.spent, 1), validation={k: v.get("J") for k, v in rows.items()},
                 click=click.get("J"))

    def averaged(self) -> Samwise:
        model = Samwise(nano_config()).to(self.device)
        model.load_state_dict({**self.model.state_dict(), **self.average})
        return model.eval()

    def export(self, path: Path) -> None:
        """The averaged weights in the layout of official checkpoints: matrices in half precision, vectors in single."""
        state = {name: value.cpu().half() if value.is_floating_point() and value.ndim >= 2 else value.cpu()
                 for name, value in self.averaged().state_dict().items()}
        write({"model": state, "config": to_dict(nano_config())}, path)

    def save(self) -> None:
        write({"model": self.model.state_dict(), "looks": self.looks.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict(),
               "step": self.step, "spent": self.spent, "taken": self.taken, "random": self.random.get_state(),
               "draw": self.draw.bit_generator.state}, self.s.out / "last.pth")

    def _resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.looks.load_state_dict(state["looks"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent, self.taken = state["step"], state["spent"], state["taken"]
        self.random.set_state(state["random"].cpu())
        self.draw.bit_generator.state = state["draw"]
        self.log(resumed=str(path.name), step=self.step, spent=round(self.spent, 1))


def initialize(model: Samwise) -> None:
    """Starting values that the modules leave to torch's defaults and that matter when nothing is pretrained."""
    for name, p in model.named_parameters():
        if p.ndim == 2 and ("trunk.blocks" in name or "sentence_encoder.layers" in name) and name.endswith("weight"):
            torch.nn.init.trunc_normal_(p, std=0.02 if "sentence" in name else min(0.05, p.shape[1] ** -0.5))


def write(data: dict, path: Path) -> None:
    """Save so that a reader never meets half a file."""
    part = path.with_suffix(".part")
    torch.save(data, part)
    os.replace(part, path)


def main() -> None:
    d = Settings()
    parser = argparse.ArgumentParser(prog="python -m export.nano.train", description="train the nano network")
    parser.add_argument("--out", type=Path, default=d.out, help="folder of the run; resumes what it finds there")
    parser.add_argument("--total-minutes", type=float, default=d.total_minutes, help="whole budget, over all calls")
    parser.add_argument("--minutes", type=float, default=d.minutes, help="end this call after so long")
    parser.add_argument("--steps", type=int, help="end this call at this step")
    parser.add_argument("--rate", type=float, default=d.rate, help="peak learning rate (default %(default)s)")
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
    Trainer(Settings(**args)).run(steps)


if __name__ == "__main__":
    main()
