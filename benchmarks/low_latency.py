"""Processor time of a frame with low latency, beside that of a frame in a whole clip, in turns of one run.

    python -m benchmarks.low_latency [--engine engines/nano] [--json benchmarks/results/low_latency-nano-ort.json]

Frames are those of a steady stream: the first window, whose frames are computed again with each other, is not timed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from runtime.tracking.session import OnlineSession


def seconds_of(session: OnlineSession, frames: list[np.ndarray]) -> float:
    """Return the processor seconds per frame of pushing all of them, their results included."""
    start = time.process_time()  # with one thread: other processes do not count
    results = [result for frame in frames for result in session.push(frame)]
    assert len(results) == len(frames)
    return (time.process_time() - start) / len(frames)


def measure(engine: runtime.Engine, rounds: int, prompts: int) -> dict[str, Any]:
    """Time one clip of each session per round; return medians, the median of the ratios, and its quartiles."""
    window = engine.networks.text_video.window
    texts = [runtime.Text(tokens=[0, 5 + i, 9, 2]) for i in range(prompts)]
    frames = list(np.random.default_rng(0).integers(0, 255, (window, 240, 320, 3), np.uint8))
    with engine.session(texts) as whole, engine.session(texts, latency="low") as low:
        for session in (whole, low, whole, low, low):
            seconds_of(session, frames)
        pairs = np.array([(seconds_of(whole, frames), seconds_of(low, frames)) for _ in range(rounds)])
    ratios = pairs[:, 1] / pairs[:, 0]
    return {
        "prompts": prompts,
        "rounds": rounds,
        "milliseconds_clip": round(1e3 * float(np.median(pairs[:, 0])), 2),
        "milliseconds_low": round(1e3 * float(np.median(pairs[:, 1])), 2),
        "ratio": round(float(np.median(ratios)), 3),
        "quartiles": [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.75))],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.low_latency", description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="engines/nano")
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with runtime.load(options.engine, backend=options.backend, threads=1) as engine:
        rows = [measure(engine, options.rounds, prompts) for prompts in (1, 3)]
        found = {"engine": engine.bundle.name, "backend": engine.backend.name, "rows": rows}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
