"""Times of stages and videos of a bundle on every GPU backend: a section of `benchmarks.gpu_check`.

Times are wall time around work that ends in one synchronisation, so that they are comparable between backends; each
figure is the median of several rounds.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from runtime.backends import create
from runtime.backends.base import load_stage, load_stages
from runtime.backends.split_loading import load_split_stages
from runtime.bundle.bundle import Bundle, choose
from runtime.bundle.manifest import StageSpec
from runtime.device.kernels import choose_kernels
from runtime.engine import Engine
from runtime.errors import SamwiseRuntimeError
from runtime.metrics import relative_error
from runtime.prompts import Text

BACKENDS = ("ort-cuda", "tensorrt", "tensorrt_rtx")
ROUNDS, REPEATS = 5, 10

MakeBackend = Callable[[str], Any]


class Video(NamedTuple):
    """Number of frames to time, and a function that returns the bytes of device memory in use."""

    frames: int
    used: Callable[[], int]


def check(
    folder: Path, video: Video, objects: Sequence[int], make: MakeBackend = create, backends: Sequence[str] = BACKENDS
) -> dict[str, Any]:
    """Measure every bundle in `folder` on every backend; a missing backend is recorded as skipped with the reason."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        for source in sorted(p.parent for p in folder.glob("*/manifest.json")):
            bundle = choose(source)
            if "samwise" not in bundle.manifest.networks:
                found[bundle.name] = {"skipped": f"{bundle.manifest.network_names} takes no sentence"}
                continue
            found[bundle.name] = {n: check_backend(bundle, n, Path(work), video, objects, make) for n in backends}
    return found or {"skipped": f"no bundle in {folder}"}


def check_backend(
    bundle: Bundle, name: str, work: Path, video: Video, objects: Sequence[int], make: MakeBackend
) -> dict[str, Any]:
    """Measure one bundle on one backend: seconds per stage and per frame, gain of CUDA graphs, growth of memory."""
    try:
        backend = make(name)
        if name != "ort-cuda" or bundle.manifest.split_stages:
            bundle = prepared_copy(bundle, name, work, backend.device.capability)
        result: dict[str, Any] = {"precision": bundle.manifest.precision, "stages": stages(bundle, backend)}
        for n in objects:
            result[f"objects_{n}"] = time_video(bundle, backend, video, n)
        result["split_stages"] = split_stages(bundle, backend, video, objects[0])
        return result
    except SamwiseRuntimeError as error:
        return {"skipped": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def prepared_copy(bundle: Bundle, name: str, work: Path, capability: int) -> Bundle:
    """Copy the bundle, with engines and, where stages are split, kernels for this GPU."""
    from export import kernels
    from export.tensorrt import build

    copy = work / f"{bundle.name}-{name}"
    if not copy.exists():
        shutil.copytree(bundle.folder, copy)
    if bundle.manifest.split_stages:
        try:
            kernels.compile_bundle(copy, [capability], report=lambda line: None)
        except SamwiseRuntimeError as error:  # kernels do not support this GPU: measure everything else
            print(f"{bundle.name}: {error}")
    if name == "ort-cuda":
        return choose(copy)
    library = build.Library(name)
    targets = [build.gpu_capability()] if library.ahead else None
    build.build_bundle(choose(copy), library, targets, report=lambda line: None)
    return choose(copy)


def stages(bundle: Bundle, backend: Any) -> dict[str, float]:
    """Time each stage with every symbol at the size that its engine is tuned for."""
    return {
        name: time_stage(stage, tuned_sizes(stage.spec, bundle), backend.device)[0]
        for name, stage in load_stages(bundle, backend).items()
    }


def tuned_sizes(spec: StageSpec, bundle: Bundle) -> dict[str, int]:
    """Return the sizes that an engine is tuned for."""
    from export.tensorrt.build import profile

    return {symbol: tuned for symbol, (_, tuned, _) in profile(spec, bundle.manifest).items()}


def time_stage(
    stage: Any, sizes: dict[str, int], device: Any, rounds: int = ROUNDS, repeats: int = REPEATS
) -> tuple[float, dict[str, np.ndarray]]:
    """Return seconds of one call, and its outputs. Floats are seeded noise, integers zero. `rounds`: 0 for the time of
    the first call."""
    rng, inputs = np.random.default_rng(0), {}
    for t in stage.spec.inputs:
        shape, kind = t.resolve(sizes), np.dtype(t.dtype)
        host = rng.standard_normal(shape, np.float32) if kind.kind == "f" else np.zeros(shape)
        inputs[t.name] = device.constant(host.astype(kind))
    outputs = {t.name: device.empty(t.resolve(sizes), t.dtype) for t in stage.spec.outputs}
    probe = next(iter(outputs.values()))

    def round_() -> float:
        begin = time.perf_counter()
        for _ in range(repeats):
            stage.run(**inputs, **outputs)
        device.download(probe)
        return (time.perf_counter() - begin) / repeats

    first = round_()
    seconds = statistics.median(round_() for _ in range(rounds)) if rounds else first
    return seconds, {name: np.array(device.download(array)) for name, array in outputs.items()}


def split_stages(bundle: Bundle, backend: Any, video: Video, objects: int) -> dict[str, Any]:
    """Compare split stages, run with kernels, with their whole graphs: seconds of each, relative error
    between them, and of a video. `auto` is decided from these numbers."""
    if not bundle.manifest.split_stages:
        return {"skipped": "no split stages; export with --split-attention"}
    try:
        split = load_split_stages(bundle, backend, choose_kernels("on", bundle.folder, backend.device), "on", objects)
        found: dict[str, Any] = {}
        for name, stage in split.items():
            sizes = tuned_sizes(stage.spec, bundle)
            whole_s, whole = time_stage(load_stage(bundle, backend, name), sizes, backend.device)
            kernel_s, kernel = time_stage(stage, sizes, backend.device)
            found[name] = {
                "whole_seconds": whole_s,
                "kernel_seconds": kernel_s,
                "gain": whole_s / kernel_s,
                "relative_error": max(relative_error(kernel[n], whole[n]) for n in whole),
            }
        return {"stages": found, f"objects_{objects}": time_video(bundle, backend, video, objects, kernels="on")}
    except SamwiseRuntimeError as error:
        return {"skipped": str(error)}


def time_video(
    bundle: Bundle, backend: Any, video: Video, objects: int, kernels: Literal["auto", "on"] = "auto"
) -> dict[str, Any]:
    """Return milliseconds per frame of a video with `objects` sentences, with CUDA graphs and without; bytes held."""
    vocabulary = bundle.manifest.networks["samwise"]["text"]["vocabulary"]
    prompts = [Text(tokens=[0, 3 + i % (vocabulary - 3), 2]) for i in range(objects)]
    rng = np.random.default_rng(0)
    clip = [rng.integers(0, 255, (360, 640, 3), dtype=np.uint8) for _ in range(16)]
    result: dict[str, Any] = {"frames": video.frames}
    for name, captured in (("graphs", True), ("plain", False)):
        engine = Engine(bundle, backend, max_objects=objects, kernels=kernels)
        backend.device.supports_graph_capture = captured
        try:
            with engine.session(prompts) as session:
                for _ in session.stream(clip[i % 16] for i in range(4 * engine.networks.text_video.window)):
                    pass  # the memory fills, every shape is compiled, the graph is captured
                held, begin = video.used(), time.perf_counter()
                for _ in session.stream(clip[i % 16] for i in range(video.frames)):
                    pass
                result[f"{name}_ms_per_frame"] = 1e3 * (time.perf_counter() - begin) / video.frames
                result[f"{name}_grown_bytes"] = video.used() - held
        finally:
            del backend.device.supports_graph_capture  # the class's own value
    result["graph_gain"] = result["plain_ms_per_frame"] / result["graphs_ms_per_frame"]
    result["captures"] = backend.device.captures
    return result
