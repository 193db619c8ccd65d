"""Sections of `benchmarks.gpu_check` about stages of base+: each on the GPU beside the CPU, split stages, TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.backends.base import load_stage
from runtime.bundle.bundle import Bundle
from runtime.errors import SamwiseRuntimeError
from runtime.metrics import relative_error

from . import gpu_pipeline
from .gpu_base import base_bundle
from .gpu_run import Run, Skipped
from .gpu_sizes import sizes
from .gpu_video import with_kernels

LARGEST_ERROR = 1e-2
"""Relative L2 error of a stage in half on the GPU, which sums in float32, against the CPU."""


def base_stages(run: Run) -> None:
    """Time every whole stage, and compare its outputs with ONNX Runtime on the CPU on the same inputs."""
    bundle, size = base_bundle(run), sizes(run.context.sizes)
    backend = run.machine.backend("ort-cuda")
    found: dict[str, Any] = {}
    loaded: dict[str, Any] = {}
    for name in whole_stages(bundle):
        if run.has_time(5, name):
            stage = loaded[name] = load_stage(bundle, backend, name)
            tuned = gpu_pipeline.tuned_sizes(stage.spec, bundle)
            seconds, _ = gpu_pipeline.time_stage(stage, tuned, backend.device, size.rounds, size.repeats)
            found[name] = {"seconds": seconds}
            run.put("stages", found)
    for name, seconds in _other_variants(run, bundle, backend, loaded).items():
        found[name]["default_seconds"] = seconds
    run.put("stages", found)
    _compare(run, bundle, found, loaded, backend.device)


def _other_variants(run: Run, bundle: Bundle, backend: Any, loaded: Mapping[str, Any]) -> dict[str, float]:
    """Time the variant `default` of the stages that have one which the backend prefers."""
    size, found = sizes(run.context.sizes), {}
    preferred, backend.variants = backend.variants, ("default",)
    for name, stage in loaded.items():
        accepted = [variant for variant in preferred if variant in stage.spec.files]
        if accepted[0] != "default" and "default" in accepted and run.has_time(5, f"default variant of {name}"):
            plain = load_stage(bundle, backend, name)
            tuned = gpu_pipeline.tuned_sizes(plain.spec, bundle)
            found[name], _ = gpu_pipeline.time_stage(plain, tuned, backend.device, size.rounds, size.repeats)
    backend.variants = preferred
    return found


def whole_stages(bundle: Bundle) -> list[str]:
    """Return the names of the stages that are no part of another."""
    return [name for name in bundle.manifest.stages if name not in bundle.subgraphs]


def _compare(run: Run, bundle: Bundle, found: dict[str, Any], loaded: Mapping[str, Any], device: Any) -> None:
    """Run each stage once on each device, those of a clip on one frame: eight take a CPU a minute."""
    cpu = run.machine.backend("ort")
    for name in sorted(loaded, key=lambda name: found[name]["seconds"]):
        if not run.has_time(10, f"{name} on the CPU"):
            continue
        spec = loaded[name].spec
        small = {symbol: 1 if symbol == "frames" else n for symbol, n in gpu_pipeline.tuned_sizes(spec, bundle).items()}
        _, got = gpu_pipeline.time_stage(loaded[name], small, device, 0, 1)
        seconds, want = gpu_pipeline.time_stage(load_stage(bundle, cpu, name), small, cpu.device, 0, 1)
        errors = {n: relative_error(got[n], want[n]) for n in want if want[n].dtype.kind == "f"}
        found[name] |= {"cpu_seconds": seconds, "relative_error": max(errors.values(), default=0.0), "errors": errors}
        run.put("stages", found)
    wrong = [n for n, row in found.items() if not row.get("relative_error", 0.0) <= LARGEST_ERROR]
    if wrong:
        raise ArithmeticError(f"{', '.join(wrong)}: further from the CPU than {LARGEST_ERROR:g}")


def split_stages(run: Run) -> None:
    """Time split stages with kernels beside their whole graphs; `auto` is decided from these numbers."""
    bundle = base_bundle(run)
    if not bundle.manifest.split_stages:
        raise Skipped("no split stages; export with --split-attention")
    backend = run.machine.backend("ort-cuda")
    video = gpu_pipeline.Video(sizes(run.context.sizes).video_frames, run.machine.used_bytes)
    bundle = with_kernels(run, bundle, backend.device.capability)
    run.put("split_stages", gpu_pipeline.split_stages(bundle, backend, video, 1))


def tensorrt(run: Run) -> None:
    """Build engine files in copies of the bundles and time them, with each library that is here."""
    video = gpu_pipeline.Video(sizes(run.context.sizes).video_frames, run.machine.used_bytes)
    found = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            run.machine.backend(name)
        except SamwiseRuntimeError as error:
            run.put(name, {"skipped": str(error)})
            continue
        found.append(name)
        run.put(name, gpu_pipeline.check(run.engines, video, (1,), run.machine.backend, (name,)))
    if not found:
        raise Skipped("neither tensorrt nor tensorrt_rtx is here")
