"""Sections of `benchmarks.gpu_check` that run the runtime: videos of nano and of base+ by sentence and by click.

Three modes are compared: `plain` (stages one by one, frames and masks on the host), `graphs` (work recorded as CUDA
graphs), `kernels` (compiled kernels as well). Recording ONNX Runtime into a graph of ours may abort the process, so
each mode is a section.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from runtime.bundle.bundle import Bundle, choose
from runtime.bundle.demo import Demo
from runtime.cli.autotune_streams import run_streams
from runtime.device.cubin import FOLDER, INDEX, read_index, runs_on
from runtime.engine import Engine
from runtime.media.synthetic_clip import Disc, synthetic_clip
from runtime.metrics import jaccard

from .gpu_run import Run, Skipped
from .gpu_sizes import sizes

MODES = {
    "plain": {"graphs": "off", "kernels": "off"},
    "graphs": {"graphs": "on", "kernels": "off"},
    "kernels": {"graphs": "on", "kernels": "on"},
}
LEAST_IOU = 0.97
"""Of the masks of any frame of nano's demonstration, against those of the CPU."""
CLIP = "nano_clip.npz"
"""The demonstration as decoded frames, carried to machines that cannot decode videos."""


@contextmanager
def engine_of(run: Run, bundle: Bundle, mode: str, max_objects: int = 16) -> Iterator[Engine]:
    """Load a bundle on CUDA in a mode, with kernels for this device where the mode takes them."""
    start = time.perf_counter()
    backend = run.machine.backend("ort-cuda")
    if MODES[mode]["kernels"] == "on":
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


TASKS = {"nano": sentences, "clicks": clicks}


def nano_on_cpu(run: Run) -> None:
    """Keep the masks of both tasks on the CPU, which the GPU's are compared with."""
    bundle, demo, frames = demonstration(run)
    with Engine(bundle, run.machine.backend("ort")) as engine:
        for task, masks_of in TASKS.items():
            start = time.perf_counter()
            masks = masks_of(engine, demo, frames)
            run.put(task, {"ms_per_frame": 1e3 * (time.perf_counter() - start) / len(frames), "frames": len(frames)})
            np.save(run.work / f"{task}.npy", np.packbits(masks, axis=-1))


def _on_gpu(run: Run, task: str, mode: str) -> None:
    """Compare the masks of a task with those of the CPU, twice: the second time graphs are replayed from the start."""
    bundle, demo, frames = demonstration(run)
    expected = np.load(run.work / f"{task}.npy")
    with engine_of(run, bundle, mode) as engine:
        for turn in ("first", "second"):
            start = time.perf_counter()
            masks = TASKS[task](engine, demo, frames)
            ms = 1e3 * (time.perf_counter() - start) / len(frames)
            iou = jaccard(masks, np.unpackbits(expected, axis=-1, count=masks.shape[-1]).astype(bool))
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


# -- base+: time --------------------------------------------------------------------------------------------------


def base_bundle(run: Run) -> Bundle:
    """Return the bundle of published size: the first one for sentences besides nano. Raises Skipped without one."""
    folders = [run.engines, *([Path(run.context.carried) / "engines"] if run.context.carried else [])]
    for folder in folders:
        for path in sorted(folder.glob("*/manifest.json")):
            bundle = choose(path.parent)
            if bundle.name != "nano" and "samwise" in bundle.manifest.networks:
                return bundle
    raise Skipped(f"no bundle for sentences besides nano in {' or '.join(map(str, folders))}; see docs/guides/gpu.md")


def prompts(bundle: Bundle, count: int) -> list[runtime.Text]:
    """Return sentences of eight tokens."""
    return prompts_of(bundle.manifest.networks["samwise"]["text"]["vocabulary"], count)


def prompts_of(top: int, count: int) -> list[runtime.Text]:
    """Return the same for a vocabulary of `top` tokens."""
    return [runtime.Text(tokens=[0, *(3 + (7 * i + 13 * j) % (top - 3) for j in range(6)), 2]) for i in range(count)]


def clip(run: Run, count: int) -> list[np.ndarray]:
    """Return drifting waves that a disc crosses, uint8 (H,W,3) each."""
    height, width = sizes(run.context.sizes).video_hw
    disc = Disc(lambda t: 0.2 * width + 8 * t, 0.3 * height, 0.1 * height, (220, 40, 60))
    return synthetic_clip(count, height, width, disc, (30, 40))


def time_video(run: Run, engine: Engine, count: int) -> dict[str, Any]:
    """Return milliseconds per frame of a video with `count` sentences, latency of its first clip, driver calls."""
    size, window = sizes(run.context.sizes), engine.networks.text_video.window
    frames = clip(run, 4 * window)
    used = run.machine.used_bytes
    with engine.session(prompts(engine.bundle, count)) as session:
        start = time.perf_counter()
        session.push(frames[0])
        for frame in frames[1:window]:
            session.push(frame)
        first = time.perf_counter() - start
        for frame in frames[window:]:  # the memory fills, every shape is compiled, graphs are captured
            session.push(frame)
        held, begin = used(), time.perf_counter()
        device: Any = engine.backend.device
        with counted(device.driver) as calls:
            for i in range(size.video_frames):
                session.push(frames[i % len(frames)])
        seconds = time.perf_counter() - begin
        grown = used() - held
    return {
        "ms_per_frame": 1e3 * seconds / size.video_frames,
        "first_clip_ms": 1e3 * first,
        "frames": size.video_frames,
        "grown_bytes": grown,
        "calls_per_frame": {name: calls[name] / size.video_frames for name in sorted(calls)},
        "captures": engine.backend.device.captures,
    }


COUNTED = ("allocate", "pinned", "copy", "synchronize", "launch")


@contextmanager
def counted(driver: Any) -> Iterator[Counter[str]]:
    """Count calls of a driver by name within the block."""
    calls: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    def counting(name: str) -> Any:
        call = getattr(driver, name)

        def counted_call(*args: Any, **keywords: Any) -> Any:
            calls[name] += 1
            return call(*args, **keywords)

        return counted_call

    for name in COUNTED:
        setattr(driver, name, counting(name))
    try:
        yield calls
    finally:
        for name in COUNTED:
            delattr(driver, name)


def _base(run: Run, mode: str) -> None:
    bundle = base_bundle(run)
    run.put("bundle", bundle.name)
    with engine_of(run, bundle, mode) as engine:
        run.put("video", time_video(run, engine, 1))
        run.put("iou_to_plain", _iou_to_plain(run, engine, mode))
        run.put("stages", {name: seconds / max(calls, 1) for name, (calls, seconds) in engine.timings.items()})


def _iou_to_plain(run: Run, engine: Engine, mode: str) -> float | None:
    """Return the least IoU of a frame with that of the plain mode, whose masks are kept; None without them."""
    with engine.session(prompts(engine.bundle, 1)) as session:
        frames = clip(run, 3 * engine.networks.text_video.window)
        masks = np.stack([result.masks for result in session.stream(frames)])
    file = run.work / "base.npy"
    if mode == "plain":
        np.save(file, np.packbits(masks, axis=-1))
    if not file.exists():
        return None
    expected = np.unpackbits(np.load(file), axis=-1, count=masks.shape[-1]).astype(bool)
    return float(np.min(jaccard(masks, expected)))


def base_plain(run: Run) -> None:
    _base(run, "plain")


def base_graphs(run: Run) -> None:
    _base(run, "graphs")


def base_kernels(run: Run) -> None:
    _base(run, "kernels")


def objects(run: Run) -> None:
    """Time a video with more and more sentences, in the mode that is fastest so far."""
    bundle, mode = base_bundle(run), fastest_mode(run)
    run.put("mode", mode)
    for count in sizes(run.context.sizes).objects:
        if run.has_time(10, f"{count} objects"):
            with engine_of(run, bundle, mode, count) as engine:
                run.put(f"objects_{count}", time_video(run, engine, count))


def streams(run: Run) -> None:
    """Time streams of one sentence each, decoded in one call."""
    bundle, mode, size = base_bundle(run), fastest_mode(run), sizes(run.context.sizes)
    run.put("mode", mode)
    frames = clip(run, size.stream_frames)
    with engine_of(run, bundle, mode, max(size.streams)) as engine:
        for count in size.streams:
            if run.has_time(8, f"{count} streams"):
                for _ in range(2):  # once to warm up
                    begin, end = run_streams([engine], prompts(bundle, 1), frames, count, count, time.perf_counter)
                rate = count * len(frames) / (end - begin)
                run.put(f"streams_{count}", {"frames_per_second": rate, "ms_per_frame": 1e3 / rate})


def fastest_mode(run: Run) -> str:
    """Return the mode in which base+ was fastest; `plain` where none was measured."""
    times = {mode: run.so_far(f"base_{mode}").get("video", {}).get("ms_per_frame") for mode in MODES}
    return min((mode for mode, ms in times.items() if ms), key=lambda mode: times[mode], default="plain")
