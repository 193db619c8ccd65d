"""Train the concept detector of nano on its frozen trunk.

    python -m export.nano.sprites && python -m export.nano.tokenizer
    python -m export.nano.train_concepts                                  # one CPU core, 70 minutes; resumable, seeded

Training time is the budget, over all calls that resume from `--out`; `last.pth` is replaced every two minutes,
`log.jsonl` gets one line per report, and `nano_concepts.pth` holds the averaged weights with those of the trunk and of
the tracker, {'model', 'config'}.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
from torch import Tensor, nn

from runtime.errors import SamwiseRuntimeError

from ..checkpoints.samwise import load_samwise
from ..models.nano_concepts import NanoConcepts, NanoConceptsConfig
from ..models.sam import Sam
from . import checkpointing, concept_objectives, tokenizer
from .concept_batches import ConceptBatch, ConceptBatchSpec, draw_batch
from .dataset import SyntheticDataset
from .optimizer import MuonAdamW
from .recover import recover_sam

FILE = "nano_concepts.pth"


@dataclass(frozen=True, slots=True)
class ConceptTrainConfig:
    """Configuration of a run; each field is an option of the command, with this help."""

    out: Annotated[Path, "folder of the run; resumed if it holds one"] = Path("build/nano/concepts")
    nano: Annotated[Path, "checkpoint of nano, or its bundle, for trunk and tracker"] = Path("engines/nano")
    total_minutes: Annotated[float, "whole budget, over all calls"] = 70.0
    steps: Annotated[int, "end this call at this step"] = 10**9
    clips: Annotated[int, "clips per batch, two images of each with four concepts"] = 8
    learning_rate: Annotated[float, "peak learning rate"] = 1.5e-3
    warmup: Annotated[int, "steps of rising learning rate"] = 60
    weight_decay: Annotated[float, "weight decay of matrices"] = 0.03
    average_decay: Annotated[float, "decay of the averaged weights per step"] = 0.995
    seed: Annotated[int, "seed of weights and of the choice of masks"] = 0
    threads: Annotated[int, "threads of torch"] = 1
    report_steps: Annotated[int, "steps between lines of the log"] = 20


def load_nano(path: Path) -> Sam:
    """Return the SAM 2 modules of nano, from a checkpoint or a bundle. Raises UserError, BundleError."""
    return recover_sam(path) if path.is_dir() else load_samwise(path).sam


def new_model(sam: Sam) -> NanoConcepts:
    """Return an untrained detector on the trunk of `sam`."""
    model = NanoConcepts(NanoConceptsConfig(replace(sam.config, source_masks=True, text_width=0)))
    weights = {name: value for name, value in sam.state_dict().items() if "project_text" not in name}
    model.tracker.load_state_dict(weights)
    initialize(model)
    return model


@torch.no_grad()
def initialize(model: NanoConcepts) -> None:
    """Set initial values that matter for a short training: one query for each part of the image, rare objects."""
    decoder, c = model.detector.transformer.decoder, model.config
    side = round(c.queries**0.5)
    steps = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    boxes = torch.stack((x, y, torch.full_like(x, 0.25), torch.full_like(x, 0.25)), 2).flatten(0, 1)[: c.queries]
    decoder.reference_points.weight[: len(boxes)] = boxes.logit()
    for layer in decoder.bbox_embed.layers[-1:]:
        layer.weight.zero_()
        layer.bias.zero_()
    for table in (decoder.query_embed, decoder.presence_token, *model.detector.geometry_encoder.children()):
        if isinstance(table, nn.Embedding):
            nn.init.normal_(table.weight, std=0.3)
    text = model.detector.backbone.language_backbone.encoder.text_model.embeddings
    nn.init.normal_(text.token_embedding.weight, std=0.5)
    nn.init.normal_(text.position_embedding.weight, std=0.1)


class ConceptTrainer:
    """One run."""

    def __init__(self, config: ConceptTrainConfig) -> None:
        self.config = config
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.model = new_model(load_nano(config.nano))
        self.model.tracker.eval().requires_grad_(False)
        self.objectives = concept_objectives.ConceptObjectives(self.model.config)
        self.spec = ConceptBatchSpec(config.clips, max_tokens=self.model.config.text.positions)
        self.dataset, self.tokenizer = SyntheticDataset(self.model.config.trunk.image_size), tokenizer.load()
        named = [*self.model.detector.named_parameters(), *self.objectives.named_parameters()]
        self.parameters = [p for _, p in named]
        self.optimizer = MuonAdamW(named, config.learning_rate, config.weight_decay)
        self.average = {n: p.detach().clone() for n, p in self.model.detector.state_dict().items()}
        self.generator = torch.Generator().manual_seed(config.seed)
        self.step, self.elapsed = 0, 0.0
        self.log: dict[str, list[float]] = defaultdict(list)
        config.out.mkdir(parents=True, exist_ok=True)
        if checkpointing.state_path(config.out).is_file():
            self._resume()

    def learn(self, batch: ConceptBatch) -> float:
        """Make one optimizer step; return the loss."""
        self.model.detector.train()
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.objectives.losses(self.model, batch, self.generator)
            loss = concept_objectives.total(losses)
        for p in self.parameters:
            p.grad = None
        loss.backward()
        losses["_norm"] = nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self._update_average()
        self.step += 1
        for name, value in losses.items():
            self.log[name].append(float(value.detach()))
        return float(loss.detach())

    def _update_average(self) -> None:
        """Add the current weights; the first steps count less, so that early weights are forgotten."""
        weight = 1 - min(self.config.average_decay, (1 + self.step) / (20 + self.step))
        state = self.model.detector.state_dict()
        for name, value in self.average.items():
            value.lerp_(state[name], weight)

    def progress(self) -> float:
        """Return the elapsed part of the whole budget."""
        return min(1.0, self.elapsed / (60 * self.config.total_minutes))

    def learning_rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / self.config.warmup)
        return self.config.learning_rate * warmup * (0.5 * (1 + math.cos(math.pi * self.progress())) * 0.99 + 0.01)

    def run(self) -> None:
        """Train until the budget or the steps of this call are reached; then save and export."""
        clock, saved = time.monotonic(), self.elapsed
        while self.progress() < 1 and self.step < self.config.steps:
            self.learn(draw_batch(self.dataset, self.tokenizer, self.spec, self.step))
            now = time.monotonic()
            self.elapsed, clock = self.elapsed + now - clock, now
            if self.step % self.config.report_steps == 0:
                self.report()
            if self.elapsed - saved > 120:
                self.save()
                saved = self.elapsed
        self.save()

    def report(self) -> None:
        """Log the means since the last report. Raises SystemExit if the loss is not finite."""
        means = {name: round(sum(v) / len(v), 4) for name, v in sorted(self.log.items())}
        self.log.clear()
        entry = {"step": self.step, "elapsed": round(self.elapsed, 1), "rate": round(self.learning_rate(), 6), **means}
        with open(self.config.out / "log.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)
        if not all(math.isfinite(v) for v in means.values()):
            raise SystemExit("the loss is not finite; resume with a smaller --learning-rate")

    def save(self) -> None:
        """Write the training state, and the averaged weights with trunk and tracker."""
        state: dict[str, Any] = {"format": checkpointing.FORMAT, "step": self.step, "elapsed": self.elapsed}
        state |= {"detector": self.model.detector.state_dict(), "objectives": self.objectives.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "average": self.average}
        state["generator"] = self.generator.get_state()
        checkpointing.write_atomic(state, checkpointing.state_path(self.config.out))
        tracker = {f"tracker.{name}": value for name, value in self.model.tracker.state_dict().items()}
        weights: dict[str, Tensor] = tracker | {f"detector.{name}": value for name, value in self.average.items()}
        data = {"model": weights, "config": asdict(self.model.config), "step": self.step}
        checkpointing.write_atomic(data, self.config.out / FILE)

    def _resume(self) -> None:
        path = checkpointing.state_path(self.config.out)
        state = torch.load(path, weights_only=True)
        if state.get("format") != checkpointing.FORMAT:
            raise SystemExit(f"{path}: training state of another version; start a new run in another folder (--out)")
        self.model.detector.load_state_dict(state["detector"])
        self.objectives.load_state_dict(state["objectives"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.generator.set_state(state["generator"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.nano.train_concepts", description="train nano's concepts")
    hints = get_type_hints(ConceptTrainConfig, include_extras=True)
    for f in fields(ConceptTrainConfig):
        hint, text = hints[f.name], f"{hints[f.name].__metadata__[0]} (default: %(default)s)"
        parser.add_argument("--" + f.name.replace("_", "-"), type=hint.__origin__, default=f.default, help=text)
    try:
        ConceptTrainer(ConceptTrainConfig(**vars(parser.parse_args()))).run()
    except (FileNotFoundError, SamwiseRuntimeError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
