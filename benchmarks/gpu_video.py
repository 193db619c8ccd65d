"""Sections of `benchmarks.gpu_check` that compare masks of the runtime with the CPU: nano by sentence and by click.

Three modes are compared: `plain` (stages one by one, frames and masks on the host), `graphs` (work recorded as CUDA
graphs), `kernels` (compiled kernels as well). Recording ONNX Runtime into a graph of ours may abort the process, so
each mode is a section.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import runtime
from runtime.bundle.bundle import Bundle, choose
from runtime.bundle.demo import Demo
from runtime.device.cubin import FOLDER, INDEX, read_index, runs_on
from runtime.engine import Engine
from runtime.metrics import jaccard

from .gpu_run import Run
from .gpu_sizes import sizes

MODES = {
    "plain": {"graphs": "off", "kernels": "off"},
    "graphs": {"graphs": "on", "kernels": "off"},
    "kernels": {"graphs": "on", "kernels": "on"},
    "default": {"graphs": "auto", "kernels": "auto"},
}
"""Of an engine. With `auto` kernels take frames in and masks out, but replace no attention."""
LEAST_IOU = 0.97
"""Of the masks of any frame of nano's demonstration, against those of the CPU."""
CLIP = "nano_clip.npz"
"""The demonstration as decoded frames, carried to machines that cannot decode videos."""


@contextmanager
def engine_of(run: Run, bundle: Bundle, mode: str, max_objects: int = 16) -> Iterator[Engine]:
    """Load a bundle on CUDA in a mode, with kernels for this device where the mode takes them."""
    start = time.perf_counter()
    backend = run.machine.backend("ort-cuda")
    if MODES[mode]["kernels"] != "off":
        bundle = with_kernels(run, bundle, backend.device.capability)
    with Engine(bundle, backend, max_objects, **MODES[mode]) as engine:
        run.put("load_seconds", time.perf_counter() - start)
        yield engine


def with_kernels(run: Run, bundle: Bundle, capability: int) -> Bundle:
    """Return the bundle if it has kernels for this device, else a copy of it with kernels, made once."""
    index = bundle.folder / FOLDER / INDEX
    if index.exists() and any(runs_on(entry.capability, capability) for entry in read_index(index.parent)):
        return bundle
    copy = run.work / "bundles" / bundle.name
    if not (copy / "complete").exists():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(bundle.folder, copy)
        start = time.perf_counter()
        count = run.machine.compile_kernels(copy, capability)
        run.put("compiled_kernels", {"count": count, "seconds": time.perf_counter() - start})
        (copy / "complete").touch()
    return choose(copy)


# -- nano: masks against the CPU ------------------------------------------------------------------------------------


def demonstration(run: Run) -> tuple[Bundle, Demo, list[np.ndarray]]:
    """Return nano, its demonstration and the frames of its clip."""
    bundle = choose(run.engines / "nano")
    demo, count = Demo.load(bundle.folder / "demo"), sizes(run.context.sizes).demo_frames
    carried = Path(run.context.carried or "nowhere") / CLIP
    if carried.exists():
        with np.load(carried) as arrays:
            return bundle, demo, list(arrays["frames"][:count])
    with runtime.open_video(demo.clip, max_frames=count) as video:
        return bundle, demo, list(video)


def sentences(engine: Engine, demo: Demo, frames: Sequence[np.ndarray]) -> np.ndarray:
    """Return the masks (T,N,H,W) of the demonstration's sentences."""
    with engine.session(demo.prompts) as session:
        return np.stack([result.masks for result in session.stream(frames)])


def clicks(engine: Engine, demo: Demo, frames: Sequence[np.ndarray]) -> np.ndarray:
    """Return the masks (T,N,H,W) of the demonstration's objects, each clicked on the first frame."""
    with engine.live() as session:
        found = list(session.stream(frames, {0: {n: inside(demo, n) for n in demo.objects}}))
    return np.stack([result.masks for result in found])


def inside(demo: Demo, object_id: int) -> runtime.Points:
    """Return a click on an object: the pixel of its mask on the first frame that is nearest to their mean."""
    rows, columns = np.nonzero(demo.masks[0] == object_id)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return runtime.Points([(float(columns[nearest]), float(rows[nearest]))], [1])


def keep_masks(file: Path, masks: np.ndarray) -> None:
    """Keep masks (...,H,W) for another process, in bits."""
    np.save(file, np.packbits(masks, axis=-1))


def iou_to_kept(file: Path, masks: np.ndarray) -> np.ndarray:
    """Return the IoU (...) of masks (...,H,W) with those that were kept."""
    return jaccard(masks, np.unpackbits(np.load(file), axis=-1, count=masks.shape[-1]).astype(bool))


TASKS = {"nano": sentences, "clicks": clicks}


def nano_on_cpu(run: Run) -> None:
    """Keep the masks of both tasks on the CPU, which the GPU's are compared with."""
    bundle, demo, frames = demonstration(run)
    with Engine(bundle, run.machine.backend("ort")) as engine:
        for task, masks_of in TASKS.items():
            start = time.perf_counter()
            masks = masks_of(engine, demo, frames)
            run.put(task, {"ms_per_frame": 1e3 * (time.perf_counter() - start) / len(frames), "frames": len(frames)})
            keep_masks(run.work / f"{task}.npy", masks)


def _on_gpu(run: Run, task: str, mode: str) -> None:
    """Compare the masks of a task with those of the CPU, twice: the second time graphs are replayed from the start."""
    bundle, demo, frames = demonstration(run)
    file = run.work / f"{task}.npy"
    with engine_of(run, bundle, mode) as engine:
        for turn in ("first", "second"):
            start = time.perf_counter()
            masks = TASKS[task](engine, demo, frames)
            ms = 1e3 * (time.perf_counter() - start) / len(frames)
            iou = iou_to_kept(file, masks)
            found = {"ms_per_frame": ms, "least_iou": float(iou.min()), "iou_by_frame": iou.min(axis=1).tolist()}
            run.put(turn, found)
        run.put("captures", engine.backend.device.captures)
    least = min(run.results[turn]["least_iou"] for turn in ("first", "second"))
    if not least >= LEAST_IOU:
        raise ArithmeticError(f"masks overlap those of the CPU by {least:.3f}, less than {LEAST_IOU}")


def nano_plain(run: Run) -> None:
    _on_gpu(run, "nano", "plain")


def nano_graphs(run: Run) -> None:
    _on_gpu(run, "nano", "graphs")


def nano_kernels(run: Run) -> None:
    _on_gpu(run, "nano", "kernels")


def clicks_plain(run: Run) -> None:
    _on_gpu(run, "clicks", "plain")


def clicks_graphs(run: Run) -> None:
    _on_gpu(run, "clicks", "graphs")


def clicks_kernels(run: Run) -> None:
    _on_gpu(run, "clicks", "kernels")
