"""Sections of `benchmarks.gpu_check` that time the runtime at published size: SAMWISE base+, objects, streams."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from runtime.bundle.bundle import Bundle, choose
from runtime.cli.autotune_streams import run_streams
from runtime.engine import Engine
from runtime.media.synthetic_clip import Disc, synthetic_clip

from .gpu_run import Run, Skipped
from .gpu_sizes import sizes
from .gpu_video import MODES, engine_of, iou_to_kept, keep_masks


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


def time_video(run: Run, engine: Engine, count: int, **options: Any) -> dict[str, Any]:
    """Return milliseconds per frame of a video with `count` sentences, latency of its first clip, driver calls.

    `options`: of the session.
    """
    size, window = sizes(run.context.sizes), engine.networks.text_video.window
    frames = clip(run, 4 * window)
    used = run.machine.used_bytes
    with engine.session(prompts(engine.bundle, count), **options) as session:
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


COUNTED = ("allocate", "pinned", "copy", "synchronize", "wait_event", "launch")


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


def _iou_to_plain(run: Run, engine: Engine, mode: str, **options: Any) -> float | None:
    """Return the least IoU of a frame with that of the plain mode, whose masks are kept; None without them."""
    with engine.session(prompts(engine.bundle, 1), **options) as session:
        frames = clip(run, 3 * engine.networks.text_video.window)
        masks = np.stack([result.masks for result in session.stream(frames)])
    file = run.work / "base.npy"
    if mode == "plain":
        keep_masks(file, masks)
    return float(np.min(iou_to_kept(file, masks))) if file.exists() else None


def base_plain(run: Run) -> None:
    _base(run, "plain")


def base_graphs(run: Run) -> None:
    _base(run, "graphs")


def base_kernels(run: Run) -> None:
    _base(run, "kernels")


def base_default(run: Run) -> None:
    _base(run, "default")


def base_ahead(run: Run) -> None:
    """Time the fastest mode so far with a frame launched before the result of the one in front of it is read; then with
    the next clip encoded on a second stream as well."""
    bundle, mode = base_bundle(run), fastest_mode(run)
    run.put("mode", mode)
    with engine_of(run, bundle, mode) as engine:
        run.put("video", time_video(run, engine, 1, decode_ahead=True))
        run.put("video_and_clip", time_video(run, engine, 1, decode_ahead=True, encode_ahead=True))
        run.put("iou_to_plain", _iou_to_plain(run, engine, mode, decode_ahead=True, encode_ahead=True))


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
