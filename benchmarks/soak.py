"""Endurance: many frames, sessions that come and go, prompts that change, bad frames, damaged files; nothing may grow.

    python -m benchmarks.soak --engine engines/nano --frames 10000 --out benchmarks/results/soak.json

Writes one JSON with a sample every `--every` frames (resident memory, open files, threads, latency) and a plot beside it. The
run fails (exit code 1) when memory, files or threads grew after the first tenth, or when any fault was not the expected
one-line error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import runtime
from runtime import video

GROWTH_MB = 32
"""Resident memory may wander by this much (arena, page cache of decoders) between the first tenth and the end."""


@dataclass(frozen=True, slots=True)
class Sample:
    """State after `frame` frames. `latency_ms` is the median time per frame since the sample before."""

    frame: int
    rss_mb: float
    files: int
    threads: int
    latency_ms: float


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(frame: int, latencies: list[float]) -> Sample:
    return Sample(frame, round(rss_mb(), 1), len(os.listdir("/proc/self/fd")), threading.active_count(),
                  round(1000 * float(np.median(latencies)), 3))


def picture(number: int, height: int, width: int) -> np.ndarray:
    """A square that moves over a gradient."""
    y, x = np.mgrid[:height, :width]
    out = np.stack([(x + number) % 256, (y + 2 * number) % 256, (x + y) % 256], -1).astype(np.uint8)
    at = (3 * number) % (width - 40)
    out[20:60, at:at + 40] = (220, 40, 60)
    return out


def sentence(engine: runtime.Engine, number: int) -> runtime.Text:
    vocabulary = engine.bundle.manifest.settings["text"]["vocabulary"]
    return runtime.Text(tokens=[0, *((5 + 17 * number + 3 * i) % (vocabulary - 5) + 4 for i in range(3 + number % 5)), 2])


def damaged_file(folder: Path) -> Path:
    """A video that breaks off in the middle of a packet."""
    import av

    path = folder / "whole.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for i in range(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, 96, 160), format="rgb24")))
        container.mux(stream.encode())
    broken = folder / "broken.mp4"
    data = path.read_bytes()
    broken.write_bytes(data[:len(data) // 3])
    return broken


def run(engine: runtime.Engine, frames: int, every: int, report=print) -> Iterator[Sample]:
    """Push `frames` frames through short and long sessions, with every kind of trouble on the way."""
    done, episode, latencies, sample_at = 0, 0, [], every
    with tempfile.TemporaryDirectory() as folder:
        broken = damaged_file(Path(folder))
        while done < frames:
            height, width = ((96, 160), (120, 90), (64, 200))[episode % 3]
            prompts = [sentence(engine, episode + i) for i in range(1 + episode % 3)]
            length = min(frames - done, (3, 40, 9, 200)[episode % 4])
            with engine.session(prompts) as session:
                for number in range(length):
                    start = time.perf_counter()
                    session.push(picture(done + number, height, width))
                    latencies.append(time.perf_counter() - start)
                    if number == 1:
                        expect(runtime.VideoError, lambda: session.push(picture(0, height + 2, width)))
                    if done + number + 1 >= sample_at:
                        yield measure(done + number + 1, latencies)
                        sample_at, latencies = sample_at + every, []
                session.flush()
            expect(runtime.UserError, lambda: session.push(picture(0, height, width)))
            expect(runtime.PromptError, lambda: engine.session([runtime.Text(tokens=[10 ** 9])]))
            if episode % 4 == 0:
                expect(runtime.RuntimeFault, lambda: list(video.frames(broken)))
            done, episode = done + length, episode + 1
            report(f"{done} frames, {episode} sessions, {rss_mb():.0f} MB")


def expect(kind: type[Exception], action) -> None:
    """The action must end in this one-line error and nothing else."""
    try:
        action()
    except kind as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from error
    else:
        raise AssertionError(f"no {kind.__name__} where one was due")


def verdict(samples: list[Sample]) -> list[str]:
    """What grew; empty when nothing did. The first tenth of the samples is warm-up."""
    start, end = samples[max(1, len(samples) // 10) - 1], samples[-1]
    grew = []
    if end.rss_mb > start.rss_mb + GROWTH_MB:
        grew.append(f"memory {start.rss_mb} -> {end.rss_mb} MB")
    for name in ("files", "threads"):
        if getattr(end, name) > getattr(start, name):
            grew.append(f"{name} {getattr(start, name)} -> {getattr(end, name)}")
    return grew


def plot(samples: list[Sample], path: Path) -> None:
    """Memory and latency over frames."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
    at = [s.frame for s in samples]
    top.plot(at, [s.rss_mb for s in samples])
    top.set(ylabel="resident memory, MB", ylim=(0, None))
    bottom.plot(at, [s.latency_ms for s in samples])
    bottom.set(ylabel="median time per frame, ms", xlabel="frames", ylim=(0, None))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="engines/nano")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=100, help="frames between samples")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.json"))
    args = parser.parse_args()
    with runtime.load(args.engine) as engine:
        samples = []
        for sample in run(engine, args.frames, args.every, report=lambda line: None):
            samples.append(sample)
            print(f"{sample.frame:7d} frames  {sample.rss_mb:7.1f} MB  {sample.files} files  {sample.threads} threads  "
                  f"{sample.latency_ms:.1f} ms", flush=True)
    grew = verdict(samples)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"engine": str(args.engine), "frames": args.frames, "grew": grew,
                                    "samples": [asdict(s) for s in samples]}, indent=1) + "\n")
    plot(samples, args.out.with_suffix(".png"))
    print("grew: " + "; ".join(grew) if grew else "nothing grew")
    return 1 if grew else 0


if __name__ == "__main__":
    sys.exit(main())
