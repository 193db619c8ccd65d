"""Does the bundle compute what torch computes?

Every stage is compared on seeded inputs at two sizes (the sizes it was traced with, and all symbols at their lowest),
then a whole clip with memory goes through the runtime and through plain torch. A bundle that misses a threshold is not
published.

    python -m export.verify engines/NAME [--backend B] [--runs FOLDER]

checks a bundle that exists, without its checkpoint: a clip runs on ONNX Runtime's plain graphs, every stage's inputs
are kept, and backend B gets the same inputs. TensorRT engines that pass are marked as verified on this kind of GPU; one
miss, and none is. `--runs` keeps what each stage was fed and gave for Polygraphy's tools (`export.verify.polygraphy_dump`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.base import Backend
from runtime.bundle.manifest import StageSpec
from runtime.errors import InternalError
from runtime.metrics import tensor_error

FILE = "parity.json"
STAGE_ERROR = {"fp32": (1e-4,), "fp16": (3e-2, 5e-3), "int8": (5e-2, 1e-2)}
"""Largest relative L2 error of one output of one stage. fp32: the rounding of a different order of sums, with room to
spare. fp16: storing inputs and outputs alone costs 3e-4, and sharp attention multiplies it; a stage above this climbs the
ladder of `export.precision`. int8: 8 bits of a tensor cost 0.5 % to 1.5 % of its length, and a block adds a few of them up; a
stage above this stays float32. If the clip then misses its threshold, all is done once more with the second number."""

MASK_IOU = {"fp32": 0.999, "fp16": 0.97, "int8": 0.9}
"""Smallest IoU of a frame's masks over the clip. fp16: rounding nothing but the weights costs up to 0.02. int8: a guard
against a broken bundle, for the clip is a pattern and its masks are small; what INT8 costs is measured in J&F (docs/cpu.md)."""

SCORE_DIFFERENCE = {"fp32": 0.05, "fp16": 2.0, "int8": 2.0}
"""Largest difference of a frame's score logit. Masks of an object that is not in the picture are empty on both sides
and say nothing; the score still passes through everything."""


class ParityError(InternalError):
    """The exported graphs do not compute what the network does; nothing was published."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: `what` is a stage, a form of it or a clip; `output` the worst of its outputs."""

    what: str
    sizes: str
    precision: str
    output: str
    error: float
    largest: float
    cosine: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit  # false for NaN


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One frame of the clip: IoU per object, and the relative L2 error of its logits."""

    frame: int
    iou: float
    error: float
    score_difference: float
    limit: float
    score_limit: float

    @property
    def passed(self) -> bool:
        return self.iou >= self.limit and self.score_difference <= self.score_limit


def compare_stage(stage: Any, spec: StageSpec, folder: Path, backend: Backend, limit: float) -> list[Row]:
    """Torch (`stage`, an `export.stage.Stage`) against every graph of `spec.files`, on the same rounded inputs."""
    loaded = {form: backend.load(folder / file, spec) for file, form in distinct(spec).items()}
    rows = []
    for values in test_sizes(stage):
        # round first, so that both sides see the same numbers
        inputs = {
            t.name: x.numpy().astype(t.dtype)
            for t, x in zip(spec.inputs, stage.sample(values, seed=1).values(), strict=True)
        }
        want = {name: x.numpy() for name, x in stage.run(_tensors(stage, inputs)).items()}
        for form, graph in loaded.items():
            name = stage.name if form == "default" else f"{stage.name} [{form}]"
            rows.append(worst(name, values, spec, run_stage(graph, spec, backend, inputs, values), want, limit))
    return sorted(rows, key=lambda row: row.what)


def distinct(spec: StageSpec) -> dict[str, str]:
    """File -> the first form that has it."""
    files: dict[str, str] = {}
    for form in sorted(spec.files, key=lambda form: (form != "default", form)):
        files.setdefault(spec.files[form], form)
    return files


def test_sizes(stage: Any) -> list[dict[str, int]]:
    """The tracing sizes and all symbols at their lowest; one set for a stage without symbols."""
    sets = [dict(stage.sizes), {symbol: low for symbol, (low, _) in stage.bounds.items()}]
    return sets if sets[0] != sets[1] else sets[:1]


def run_stage(
    loaded: Any, spec: StageSpec, backend: Backend, inputs: Mapping[str, np.ndarray], sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Outputs by name, on the host."""
    device = backend.device
    arrays = {t.name: device.constant(inputs[t.name]) for t in spec.inputs}
    outputs = {t.name: device.empty(t.resolve(sizes), t.dtype) for t in spec.outputs}
    loaded.run(**arrays, **outputs)
    return {name: np.array(device.download(array)) for name, array in outputs.items()}


def worst(
    what: str,
    sizes: Mapping[str, int],
    spec: StageSpec,
    got: Mapping[str, np.ndarray],
    want: Mapping[str, np.ndarray],
    limit: float,
) -> Row:
    """The output with the largest error, as a row."""
    results = {t.name: tensor_error(got[t.name], want[t.name]) for t in spec.outputs}
    name = max(results, key=lambda n: (np.isnan(results[n].relative), results[n].relative))
    text = " ".join(f"{symbol}={value}" for symbol, value in sorted(sizes.items()))
    return Row(what, text or "-", spec.precision, name, *results[name], limit)


def compare_clip(
    want: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], results: Sequence[Any], precision: str
) -> list[ClipRow]:
    """(masks (N,H,W) bool, low_res_logits (N,s,s), scores (N,)) per frame against the runtime's `Result`s, held to the
    thresholds of `precision`."""
    rows = []
    for (masks, logits, scores), result in zip(want, results, strict=True):
        both = np.logical_and(masks, result.masks).sum((1, 2))
        either = np.logical_or(masks, result.masks).sum((1, 2))
        iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
        difference = np.abs(scores.astype(np.float64) - result.score_logits).max()
        rows.append(
            ClipRow(
                int(result.frame_index),
                float(iou.min()),
                tensor_error(result.low_res_logits, logits).relative,
                float(difference),
                MASK_IOU[precision],
                SCORE_DIFFERENCE[precision],
            )
        )
    return rows


def table(rows: Sequence[Row], clip: Sequence[ClipRow] = ()) -> str:
    """Both comparisons as text."""
    lines = [f"{'stage':24} {'precision':14} {'worst output':20} {'rel. L2':>9} {'max abs':>9} {'cosine':>9}  sizes"]
    lines += [
        f"{r.what:24} {r.precision:14} {r.output:20} {r.error:9.1e} {r.largest:9.1e} {r.cosine:9.6f}  {r.sizes}"
        + ("" if r.passed else f"  MISSES {r.limit:g}")
        for r in rows
    ]
    if clip:
        lines += ["", f"{'frame':>5} {'mask IoU':>9} {'logits rel. L2':>15} {'score diff.':>12}"]
        lines += [
            f"{c.frame:5} {c.iou:9.5f} {c.error:15.1e} {c.score_difference:12.1e}" + ("" if c.passed else "  MISSES")
            for c in clip
        ]
    return "\n".join(lines)


def as_json(rows: Sequence[Row], clip: Sequence[ClipRow]) -> dict[str, Any]:
    """What `parity.json` holds."""
    return {
        "stages": [asdict(r) | {"passed": r.passed} for r in rows],
        "clip": [asdict(c) | {"passed": c.passed} for c in clip],
        "summary": summary(rows, clip),
    }


def summary(rows: Sequence[Row], clip: Sequence[ClipRow]) -> dict[str, float]:
    """The worst numbers, for the manifest."""
    found: dict[str, float] = {}
    if rows:
        found["stage_error"] = max(r.error for r in rows)
    if clip:
        found |= {"mask_iou": min(c.iou for c in clip), "logits_error": max(c.error for c in clip)}
    return found


def require(rows: Sequence[Row], clip: Sequence[ClipRow] = ()) -> None:
    """Raise ParityError that names the first miss."""
    for r in rows:
        if not r.passed:
            raise ParityError(
                f"stage {r.what} misses its threshold: relative L2 error of {r.output} is {r.error:.2g}, "
                f"allowed {r.limit:g} ({r.sizes})"
            )
    for c in clip:
        if not c.passed:
            raise ParityError(
                f"frame {c.frame} of the clip misses its threshold: mask IoU {c.iou:.4f}, at least "
                f"{c.limit:g}; score off by {c.score_difference:.2g}, at most {c.score_limit:g}"
            )


def _tensors(stage: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import torch

    from ..stage import DTYPES

    return {t.name: torch.from_numpy(inputs[t.name]).to(DTYPES[t.dtype]) for t in stage.spec.inputs}
