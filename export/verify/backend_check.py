"""A bundle that exists against itself: what a backend makes of the inputs that each stage has on a clip.

The reference is ONNX Runtime on the plain graphs, so no checkpoint and no torch is needed. `python -m export.verify` is the command.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runtime.backends import create
from runtime.backends.base import Backend
from runtime.backends.recorder import StageRecorder, StageRecorders
from runtime.backends.split_stage import SplitStage
from runtime.bundle import engine_index
from runtime.bundle.bundle import Bundle
from runtime.engine import Engine

from .parity import STAGE_ERROR, ClipRow, Row, compare_clip, run_stage, worst
from .parity_clip import clip_results
from .polygraphy_dump import Runs

KERNELS = "kernels"
"""Stands in place of a variant where compiled kernels run part of a stage."""


def recheck(
    bundle: Bundle, backend: str = "auto", threads: int | None = None, runs: Runs | None = None, kernels: str = "auto"
) -> tuple[list[Row], list[ClipRow]]:
    """The graphs that `backend` prefers against ONNX Runtime's plain ones, stage by stage on a clip, then the clip. What
    each stage was fed and gave goes to `runs`. `kernels` as in `runtime.load`; stages that kernels take part of are held
    to the same threshold."""
    bundle.verify()
    other = create(backend, threads)
    plain = create("ort", threads)
    plain.variants = ("default",)
    reference = Engine(bundle, plain)
    recorders = StageRecorders(plain.device, once_per_size=True)
    reference.instrument(recorders.wrap)
    want = clip_results(reference)
    precision = bundle.manifest.precision
    engine = Engine(bundle, other, kernels=kernels)
    rows = []
    for name in list(recorders):  # a record is dropped when it has been compared
        stage = engine.stages[name].stage
        rows += _recheck_stage(other, stage, recorders.pop(name), max(STAGE_ERROR[precision]), runs)
    frames = [(r.masks, r.low_res_logits, r.score_logits) for r in want]
    clip = compare_clip(frames, clip_results(engine), precision)
    if hasattr(other, "library") and all(r.passed for r in (*rows, *clip)):
        engine_index.mark_verified(
            bundle.folder,
            bundle.manifest,
            other.library,
            other.version,
            other.device.capability,
            _by_engine(bundle, rows),
        )
    return rows, clip


def _recheck_stage(other: Backend, stage: Any, recorder: StageRecorder, limit: float, runs: Runs | None) -> list[Row]:
    """One stage on the backend `other`, fed with the recorded inputs."""
    spec = recorder.spec
    variant = next(v for v in other.variants if v in spec.files)
    what = KERNELS if isinstance(stage, SplitStage) else variant
    rows = []
    for record in recorder.records:
        sizes, inputs, outputs = record.sizes, record.inputs, record.outputs
        got = run_stage(stage, spec, other, inputs, sizes)
        rows.append(worst(f"{spec.name} [{what}]", sizes, spec, got, outputs, limit))
        if runs is not None:
            runs.add(spec, spec.files[variant], sizes, inputs, outputs, got, limit)
    return rows


def _by_engine(bundle: Bundle, rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """`worst_by_stage` of what has engines: a stage with kernels in it speaks for its parts, and not for the whole one."""
    rows = list(rows)
    found = worst_by_stage(row for row in rows if not row.what.endswith(f"[{KERNELS}]"))
    for name, errors in worst_by_stage(row for row in rows if row.what.endswith(f"[{KERNELS}]")).items():
        found |= dict.fromkeys(bundle.manifest.split_stages[name].subgraphs, errors)
    return found


def worst_by_stage(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Stage -> its largest errors and smallest cosine over all sizes."""
    found: dict[str, dict[str, float]] = {}
    for r in rows:
        have = found.setdefault(r.what.split(" ")[0], {"relative_error": 0.0, "largest_error": 0.0, "cosine": 1.0})
        have["relative_error"] = max(have["relative_error"], r.error)
        have["largest_error"] = max(have["largest_error"], r.largest)
        have["cosine"] = min(have["cosine"], r.cosine)
    return found
