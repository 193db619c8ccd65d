"""1, 2, 4 and 8 streams of one sentence on a processor or GPU, in several ways, in one run.

- one after another: sessions, as without a scheduler;
- interleaved: a scheduler that decodes each frame alone (`batch=1`);
- batched: a scheduler that decodes frames of all streams in one call;
- engines of one thread: on a CPU, as many engines and schedulers as cores, each with its part of the streams.

Every stream has all its frames from the start, so the engine is never idle. A wait is the time from one result of a
stream to its next, its first from the start of all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

import runtime
from runtime import Delivery, Outcome
from runtime.cli.autotune_streams import run_streams

from .bench_clip import clip, sentences

STREAMS = (1, 2, 4, 8)
FRAMES = 16
"""Of each stream: two clips."""

Way = Callable[[], tuple[float, list[float]]]
"""Returns the seconds of a run, and all waits."""


@pytest.fixture(scope="session")
def engines(bundle, backend):
    """One engine of one thread for each core."""
    if backend not in ("ort", "openvino"):
        return []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return [runtime.load(bundle.folder, backend=backend, threads=1, verify=False) for _ in range(cores)]


@pytest.mark.parametrize("count", STREAMS)
def test_streams(benchmark, info, loaded, engines, pace, count):
    prompts, frames = sentences(loaded, 1), clip(FRAMES)
    ways: dict[str, Way] = {
        "one after another": lambda: one_after_another(loaded, prompts, frames, count),
        "interleaved": lambda: scheduled([loaded], prompts, frames, count, 1),
        "batched": lambda: scheduled([loaded], prompts, frames, count, count),
    }
    if engines:
        ways["engines of one thread"] = lambda: scheduled(engines, prompts, frames, count, 1)
    runs: dict[str, list[tuple[float, list[float]]]] = {way: [] for way in ways}

    def turn() -> None:
        for way, run in ways.items():
            runs[way].append(run())

    benchmark.pedantic(turn, **pace)
    timed = {way: found[-pace["rounds"] :] for way, found in runs.items()}
    seconds = {way: min(taken for taken, _ in found) for way, found in timed.items()}
    waits = {way: [wait for _, some in found for wait in some] for way, found in timed.items()}
    info(
        streams=count,
        frames_per_second={way: count * FRAMES / taken for way, taken in seconds.items()},
        p95_wait_seconds={way: float(np.percentile(found, 95)) for way, found in waits.items()},
        speed_over_one_after_another={way: seconds["one after another"] / taken for way, taken in seconds.items()},
    )


def one_after_another(
    engine: runtime.Engine, prompts: Sequence[runtime.Text], frames: Sequence[np.ndarray], count: int
) -> tuple[float, list[float]]:
    """Run the streams as sessions, each to its end."""
    start, waits = time.perf_counter(), []
    for _ in range(count):
        last = start
        with engine.session(prompts) as session:
            for _result in session.stream(iter(frames)):
                waits.append(time.perf_counter() - last)
                last = time.perf_counter()
    return time.perf_counter() - start, waits


def scheduled(
    engines: Sequence[runtime.Engine],
    prompts: Sequence[runtime.Text],
    frames: Sequence[np.ndarray],
    count: int,
    batch: int,
) -> tuple[float, list[float]]:
    """Run the streams on schedulers, one for each engine."""
    ends: list[list[float]] = [[] for _ in range(count)]

    def deliver(stream: int, delivery: Delivery) -> None:
        if delivery.outcome is Outcome.DONE:
            ends[stream].append(time.perf_counter())

    start, end = run_streams(engines, prompts, frames, count, batch, time.perf_counter, deliver)
    return end - start, [wait for found in ends for wait in np.diff([start, *found]).tolist()]
