"""SAM 2 with 1, 2, 4 and 8 objects: cost of each further object against that of its own stages.

The image is encoded once for all; memory attention, decoder and memory encoder run per object. `further_over_own` is
the time of each further object over the time of those stages for one object alone: 1 means that nothing else grows.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

import runtime

from . import flops
from .bench_clip import HEIGHT, clip
from .bench_stages import arrays, sizes

OBJECTS = (1, 2, 4, 8)
OWN = ("memory_attention", "prompt_decoder", "prompt_memory_encoder")
"""Stages that work per object."""
FILL, TIMED = 8, 2
"""Frames until the memory is full, and frames that count per round."""

_one: dict[str, tuple[float, float]] = {}
"""Bundle -> (seconds per frame, seconds in its own stages) with one object."""


@pytest.mark.parametrize("count", OBJECTS)
def test_objects(benchmark, info, loaded, bundle, pace, count):
    if runtime.Capability.PROMPT_VIDEO not in loaded.capabilities:
        pytest.skip("this bundle has no live sessions")
    timed = TIMED * pace["rounds"]
    frames = clip(FILL + timed)
    boxes = {i: runtime.Box([20 + 60 * i, 30, 110 + 60 * i, HEIGHT - 40]) for i in range(count)}
    with loaded.live() as session:
        for t, frame in enumerate(frames[:FILL]):
            session.push(frame, boxes if t == 0 else None)
        rest, own, whole = iter(frames[FILL:]), [], []

        def one() -> None:
            before, start = spent(loaded), time.perf_counter()
            session.push(next(rest))
            whole.append(time.perf_counter() - start)
            own.append(spent(loaded) - before)

        benchmark.pedantic(one, rounds=timed)
    seconds, mine = float(np.median(whole)), float(np.median(own))
    if count == 1:
        _one[bundle.name] = seconds, mine
    info(
        objects=count,
        seconds_per_frame=seconds,
        seconds_of_objects=mine,
        gflop_of_objects=gflop(bundle, count),
        peak_memory_slots=bundle.manifest.networks["sam2"]["memory"]["num_maskmem"],
    )
    if count > 1 and bundle.name in _one:
        first, alone = _one[bundle.name]
        info(further_over_own=(seconds - first) / (count - 1) / alone)


def spent(engine) -> float:
    return sum(engine.timings[name][1] for name in OWN)


def gflop(bundle, objects: int) -> float:
    """GFLOP of these stages for one frame with a full memory."""
    total = 0.0
    for name in OWN:
        spec = bundle.manifest.stages[name]
        symbols = sizes(bundle, spec) | {"objects": objects}
        total += flops.stage_flops(bundle, spec, arrays(spec, {s: symbols[s] for s in spec.symbols}))
    return total / 1e9
