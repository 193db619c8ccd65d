"""Parity check of an export: comparison of the graphs and of the runtime with plain torch.

Every stage is compared on seeded inputs at two sizes (the tracing sizes, and all symbols at their lowest), then a clip
with memory runs through the runtime and through plain torch. A bundle that misses a threshold is not published.
`export.verify.backend_check` compares an existing bundle without its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.base import Backend
from runtime.bundle.manifest import StageSpec
from runtime.errors import InternalError
from runtime.metrics import tensor_error

from .parity_clip import ClipOutput

Arrays = Mapping[str, np.ndarray]

FILE = "parity.json"
STAGE_ERROR = {"fp32": (1e-4,), "fp16": (3e-2, 5e-3), "int8": (5e-2, 1e-2)}
STAGE_ERROR |= {"int8-weights": (5e-2, 1e-2), "int4-weights": (0.2, 5e-2)}
"""Maximum relative L2 error of one output of one stage.

fp32: rounding of sums in another order, with a margin. fp16: storing inputs and outputs in half alone costs 3e-4, and
sharp attention multiplies it; a stage above the limit gets the next precision policy of `export.precision`. int8: 8
bits of a tensor cost 0.5 % to 1.5 % of its norm, and a block adds up several of them; a stage above the limit stays
float32. int8-weights: as int8. int4-weights: 4 bits cost 8 % of a product; a stage above the limit has 8 bits. If the
clip misses its threshold, the export starts again with the second limit.
"""

BFLOAT16_STEP = 2.0**-7
"""Largest distance of neighbouring bfloat16 numbers, relative to them."""

MASK_IOU = {"fp32": 0.999, "fp16": 0.97, "int8": 0.9, "int8-weights": 0.9, "int4-weights": 0.8}
"""Minimum IoU of the masks of a frame of the clip.

fp16: rounding the weights alone costs up to 0.02. int8: a guard against broken bundles, because the clip is a pattern
with small masks; docs/notes/cpu.md has the cost of INT8 in J&F.
"""

SCORE_DIFFERENCE = {"fp32": 0.05, "fp16": 2.0, "int8": 2.0, "int8-weights": 2.0, "int4-weights": 2.0}
"""Maximum difference of the score logit of a frame: it tests the whole network even where the masks are empty."""


class ParityError(InternalError):
    """The exported graphs differ from the network by more than a threshold; nothing was published."""


@dataclass(frozen=True, slots=True)
class StageComparison:
    """Worst output of a stage at one size; `what` is the stage, or `stage [variant]`."""

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
class FrameComparison:
    """One frame of the clip: smallest mask IoU, relative L2 error of its logits, difference of its score."""

    frame: int
    iou: float
    error: float
    score_difference: float
    limit: float
    score_limit: float

    @property
    def passed(self) -> bool:
        return self.iou >= self.limit and self.score_difference <= self.score_limit


def compare_stage(stage: Any, spec: StageSpec, folder: Path, backend: Backend, limit: float) -> list[StageComparison]:
    """Compare every graph of `spec.files` with torch (`stage`, an `export.stage.Stage`) on the same rounded inputs.

    One graph is loaded at a time: each holds the weights once more.
    """
    cases = []
    for values in parity_sizes(stage):
        # round first, so that both sides see the same numbers
        sample = stage.sample(values, seed=1)
        inputs = {t.name: sample[t.name].numpy().astype(t.dtype) for t in spec.inputs}
        cases.append((values, inputs, {name: x.numpy() for name, x in stage.run(_tensors(stage, inputs)).items()}))
    rows = []
    for file, variant in distinct_graphs(spec).items():
        name = stage.name if variant == "default" else f"{stage.name} [{variant}]"
        graph = backend.load(folder / file, spec)
        for values, inputs, want in cases:
            got = run_stage(graph, spec, backend, inputs, values)
            rows.append(compare_outputs(name, values, spec, got, want, limit))
        del graph  # before the next one is loaded
    return sorted(rows, key=lambda row: row.what)


def distinct_graphs(spec: StageSpec) -> dict[str, str]:
    """Map every file to the first variant that has it."""
    files: dict[str, str] = {}
    for variant in sorted(spec.files, key=lambda variant: (variant not in ("default", "ort"), variant)):
        files.setdefault(spec.files[variant], variant)
    return files


def parity_sizes(stage: Any) -> list[dict[str, int]]:
    """Return the tracing sizes, and the lowest sizes if they differ."""
    sets = [dict(stage.sizes), {symbol: low for symbol, (low, _) in stage.bounds.items()}]
    return sets if sets[0] != sets[1] else sets[:1]


def run_stage(
    loaded: Any, spec: StageSpec, backend: Backend, inputs: Arrays, sizes: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Run a loaded stage and return its outputs by name, on the host."""
    device = backend.device
    arrays = {t.name: device.constant(inputs[t.name]) for t in spec.inputs}
    outputs = {t.name: device.empty(t.resolve(sizes), t.dtype) for t in spec.outputs}
    loaded.run(**arrays, **outputs)
    return {name: np.array(device.download(array)) for name, array in outputs.items()}


def compare_outputs(
    what: str, sizes: Mapping[str, int], spec: StageSpec, got: Arrays, want: Arrays, limit: float
) -> StageComparison:
    """Return the comparison of the output with the largest error."""
    results = {t.name: tensor_error(got[t.name], want[t.name]) for t in spec.outputs}
    limits = {name: rounded_limit(want[name], limit) for name in results}
    name = max(results, key=lambda n: (np.isnan(results[n].relative), results[n].relative / limits[n]))
    text = " ".join(f"{symbol}={value}" for symbol, value in sorted(sizes.items()))
    return StageComparison(what, text or "-", spec.precision, name, *results[name], limits[name])


def rounded_limit(want: np.ndarray, limit: float) -> float:
    """Return the limit of an output, which is larger where a stage rounds to bfloat16 (SAM 2's memory).

    A difference e before rounding moves a share e / BFLOAT16_STEP of the values by a whole step.
    """
    if want.dtype != np.float32 or (np.ascontiguousarray(want).view(np.uint32) & 0xFFFF).any():
        return limit
    return max(limit, (limit * BFLOAT16_STEP) ** 0.5)


def compare_clip(
    want: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], results: Sequence[ClipOutput], precision: str
) -> list[FrameComparison]:
    """Compare what the runtime gave with frames of a reference, at the thresholds of `precision`."""
    rows = []
    for (masks, logits, scores), result in zip(want, results, strict=True):
        both = np.logical_and(masks, result.masks).sum((1, 2))
        either = np.logical_or(masks, result.masks).sum((1, 2))
        iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
        difference = np.abs(scores.astype(np.float64) - result.score).max()
        error = tensor_error(result.low_res_logits, logits).relative
        limits = MASK_IOU[precision], SCORE_DIFFERENCE[precision]
        rows.append(FrameComparison(int(result.frame_index), float(iou.min()), error, float(difference), *limits))
    return rows


def format_table(rows: Sequence[StageComparison], clip: Sequence[FrameComparison] = ()) -> str:
    """Format both comparisons as text."""
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


def as_json(rows: Sequence[StageComparison], clip: Sequence[FrameComparison]) -> dict[str, Any]:
    """Return the content of `parity.json`."""
    return {
        "stages": [asdict(r) | {"passed": r.passed} for r in rows],
        "clip": [asdict(c) | {"passed": c.passed} for c in clip],
        "summary": summary(rows, clip),
    }


def extend(path: Path, rows: Sequence[StageComparison]) -> None:
    """Add comparisons of stages to the report of a bundle, if it has one, in place of those of the same graphs."""
    if not path.is_file():
        return
    report = json.loads(path.read_text())
    names = {row.what for row in rows}
    report["stages"] = [row for row in report["stages"] if row["what"] not in names] + as_json(rows, ())["stages"]
    path.write_text(json.dumps(report, indent=1) + "\n")


def summary(rows: Sequence[StageComparison], clip: Sequence[FrameComparison]) -> dict[str, float]:
    """Return the worst numbers, for the manifest."""
    found: dict[str, float] = {}
    if rows:
        found["stage_error"] = max(r.error for r in rows)
    if clip:
        found |= {"mask_iou": min(c.iou for c in clip), "logits_error": max(c.error for c in clip)}
    return found


def require_passed(rows: Sequence[StageComparison], clip: Sequence[FrameComparison] = ()) -> None:
    """Raise ParityError for the first comparison that did not pass."""
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


def _tensors(stage: Any, inputs: Arrays) -> dict[str, Any]:
    import torch

    from ..stage import DTYPES

    return {t.name: torch.from_numpy(inputs[t.name]).to(DTYPES[t.dtype]) for t in stage.spec.inputs}
