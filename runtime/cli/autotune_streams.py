"""Measurement of how many streams a scheduler should decode in one call; saved for `runtime.scheduler`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np

from ..backends import autotune
from ..engine import Engine
from ..prompts import Text
from ..scheduler.delivery import Delivery
from ..scheduler.scheduler import Scheduler
from ..scheduler.tuning import MAX_BATCH, BatchTuning

Clock = Callable[[], float]


def tune_streams(
    engine: Engine, prompts: Sequence[Text], frames: Sequence[np.ndarray], streams: int, rounds: int, clock: Clock
) -> BatchTuning:
    """Run streams of these prompts and frames, uint8 (H,W,3), with batches of 1, 2, 4 ... up to `streams`, in turn."""
    batches = [1, *(2**i for i in range(1, MAX_BATCH.bit_length()) if 2**i <= streams)]
    least = dict.fromkeys(batches, float("inf"))
    for _ in range(rounds + 1):  # once to warm up
        for batch in batches:
            start, end = run_streams([engine], prompts, frames, streams, batch, clock)
            seconds = end - start
            least[batch] = seconds if least[batch] == float("inf") else min(least[batch], seconds)
    rates = {batch: streams * len(frames) / max(seconds, 1e-9) for batch, seconds in least.items()}
    best = max(batches, key=lambda batch: rates[batch])
    return BatchTuning(
        backend=engine.backend.name,
        bundle=engine.bundle.name,
        fingerprint=autotune.fingerprint(engine.bundle.manifest),
        processor=autotune.processor(),
        streams=streams,
        frames_per_second={str(batch): rate for batch, rate in rates.items()},
        batch=best if rates[best] >= autotune.MIN_SPEEDUP * rates[1] else 1,
    )


def run_streams(
    engines: Sequence[Engine],
    prompts: Sequence[Text],
    frames: Sequence[np.ndarray],
    streams: int,
    batch: int,
    clock: Clock,
    deliver: Callable[[int, Delivery], None] = lambda stream, delivery: None,
) -> tuple[float, float]:
    """Run streams, in turn on schedulers of the engines, with all frames from the start; return the times of its ends.

    `deliver` is called with the number of a stream and what comes of it.
    """
    go = threading.Event()
    with ExitStack() as stack:
        schedulers = [stack.enter_context(Scheduler(engine, streams, batch, batch_wait=60.0)) for engine in engines]
        opened = [
            schedulers[i % len(engines)].open(prompts, partial(deliver, i), max_pending=len(frames))
            for i in range(streams)
        ]
        for scheduler in schedulers:
            scheduler.submit(lambda _: go.wait())
        for stream in opened:
            for frame in frames:
                stream.put(frame)
        start = clock()
        go.set()
        for scheduler in schedulers:
            scheduler.drain()
        return start, clock()
