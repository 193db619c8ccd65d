"""Comparison of a backend with ONNX Runtime on an existing bundle; needs neither the checkpoint nor torch.

The parity clip runs on ONNX Runtime's default graphs, and the backend gets the recorded inputs of every stage; then the
clip runs on the backend. The command is `python -m export.verify`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from runtime.backends import create
from runtime.backends.base import Backend
from runtime.backends.recorder import StageRecorder, StageRecorders, run_steps
from runtime.backends.split_stage import SplitStage
from runtime.backends.trt import TensorRtBackend
from runtime.bundle import engine_index
from runtime.bundle.bundle import Bundle
from runtime.engine import Engine
from runtime.models.base import Capability

from .parity import STAGE_ERROR, FrameComparison, StageComparison, compare_clip, compare_outputs, run_stage
from .parity_clip import CLICK, clip_frames, clip_results
from .polygraphy_dump import PolygraphyDump

KERNELS = "kernels"
"""Name, in place of a variant, of a split stage that runs with compiled kernels."""


def check_backend(
    bundle: Bundle,
    backend: str = "auto",
    threads: int | None = None,
    dump: PolygraphyDump | None = None,
    kernels: str = "auto",
) -> tuple[list[StageComparison], list[FrameComparison]]:
    """Compare every stage, then the clip, and mark TensorRT engines as verified if everything passes.

    `dump` gets inputs and outputs of every stage. `kernels` as in `runtime.load`; stages that run with kernels have the
    same threshold.
    """
    bundle.verify()
    other, plain = create(backend, threads), create("ort", threads)
    plain.variants = ("default",)
    reference = Engine(bundle, plain)
    recorders = StageRecorders(plain.device, once_per_size=True)
    # steps run one by one behind other clips; the clip comes last, which fills the memory
    reference.instrument(recorders.wrap_step)
    run_steps(reference, clip_frames(4))
    reference.instrument(recorders.wrap_other)
    _run_prompts(reference)
    want = clip_results(reference)
    precision = bundle.manifest.precision
    engine = Engine(bundle, other, kernels=kernels)
    stages = []
    for name in list(recorders):  # a record is freed after its comparison
        stage = engine.stages[name].stage
        stages += _check_stage(other, stage, recorders.pop(name), max(STAGE_ERROR[precision]), dump)
    expected = [(output.masks, output.low_res_logits, output.score) for output in want]
    frames = compare_clip(expected, clip_results(engine), precision)
    passed = all(stage.passed for stage in stages) and all(frame.passed for frame in frames)
    if isinstance(other, TensorRtBackend) and passed:
        gpu, errors = other.device.capability, _errors_by_engine(bundle, stages)
        engine_index.mark_verified(bundle.folder, bundle.manifest, other.library, other.version, gpu, errors)
    return stages, frames


def _run_prompts(engine: Engine) -> None:
    """Run the stages of clicks and masks, which the clip of a network with sentences does not need."""
    if Capability.PROMPT_VIDEO not in engine.capabilities:
        return
    frames = clip_frames(2)
    mask = np.zeros(frames[0].shape[:2], bool)
    mask[20:60, 40:90] = True
    with engine.video(frames, fill_hole_area=0) as video:
        video.add_points(0, 1, [CLICK], [1], normalized=True)
        video.add_mask(0, 2, mask)
        list(video.propagate())


def _check_stage(
    other: Backend, stage: Any, recorder: StageRecorder, limit: float, dump: PolygraphyDump | None
) -> list[StageComparison]:
    """Run one stage of the backend `other` on the recorded inputs."""
    spec = recorder.spec
    variant = next(v for v in other.variants if v in spec.files)
    what = f"{spec.name} [{KERNELS if isinstance(stage, SplitStage) else variant}]"
    comparisons = []
    for record in recorder.records:
        got = run_stage(stage, spec, other, record.inputs, record.sizes)
        comparisons.append(compare_outputs(what, record.sizes, spec, got, record.outputs, limit))
        if dump is not None:
            dump.add(spec, spec.files[variant], record.sizes, record.inputs, record.outputs, got, comparisons[-1].limit)
    return comparisons


def _errors_by_engine(bundle: Bundle, stages: Iterable[StageComparison]) -> dict[str, dict[str, float]]:
    """Return `worst_by_stage` by engine file: the errors of a split stage with kernels count for its subgraphs."""
    stages = list(stages)
    errors = worst_by_stage(c for c in stages if not c.what.endswith(f"[{KERNELS}]"))
    for name, worst in worst_by_stage(c for c in stages if c.what.endswith(f"[{KERNELS}]")).items():
        errors |= dict.fromkeys(bundle.manifest.split_stages[name].subgraphs, worst)
    return errors


def worst_by_stage(stages: Iterable[StageComparison]) -> dict[str, dict[str, float]]:
    """Return the largest errors and the smallest cosine of every stage over all sizes."""
    worst: dict[str, dict[str, float]] = {}
    for c in stages:
        of_stage = worst.setdefault(c.what.split(" ")[0], {"relative_error": 0.0, "largest_error": 0.0, "cosine": 1.0})
        of_stage["relative_error"] = max(of_stage["relative_error"], c.error)
        of_stage["largest_error"] = max(of_stage["largest_error"], c.largest)
        of_stage["cosine"] = min(of_stage["cosine"], c.cosine)
    return worst
