"""Endurance: many frames, sessions that come and go, prompts that change, bad frames, damaged files; nothing may grow.

    python tests/soak/run.py --engine engines/nano --frames 10000 --out benchmarks/results/soak_nano.json

Writes a JSON with a sample about every `--every` frames (resident memory, open files, threads, latency), anew after
each sample, so that a run that is stopped leaves what it measured; at the end a plot in `--plot` (PNG and SVG).
Samples are taken between sessions, when everything that a session holds must be back. The run fails (exit code 1) when
memory, files or threads grew, when the same clip no longer gives the same masks, or when any fault was not the
expected one-line error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the packages of the clone and of its tests, from any folder
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import runtime
from runtime.media import video_sources
from soak.media import Media, picture
from soak.scenarios import RELOAD_EVERY, Life, bundle_again, episodes, sentence

GROWTH_MB = 32
"""Resident memory may wander by this much (arena, page cache of decoders) between the second tenth and the last."""


@dataclass(frozen=True, slots=True)
class Sample:
    """State after `frame` frames. Latencies are of the calls of `push` since the sample before, in milliseconds. Most
    calls only take a frame; the 95th percentile is that of calls that complete a clip and compute all of it."""

    frame: int
    rss_mb: float
    files: int
    threads: int
    latency_p50_ms: float = 0.0
    latency_p95_ms: float = 0.0


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def native_threads() -> int:
    """Threads of the process, those of libraries included."""
    return len(os.listdir("/proc/self/task"))


def measure(life: Life) -> Sample:
    """A sample now; the latencies so far are taken out of `life`."""
    p50, p95 = (1000 * np.percentile(life.latencies, (50, 95))).round(3).tolist() if life.latencies else (0.0, 0.0)
    life.latencies.clear()
    return Sample(life.frames, round(rss_mb(), 1), len(os.listdir("/proc/self/fd")), native_threads(), p50, p95)


def run(life: Life, frames: int, every: int) -> Iterator[Sample]:
    """Live one episode after the other until `frames` frames are done; a sample after the episode that completes
    `every`."""
    round_, sample_at, first = episodes(life), every, probe(life.engine)
    while life.frames < frames:
        number = life.sessions
        round_[number % len(round_)](life, number // len(round_))
        life.sessions += 1
        if number % RELOAD_EVERY == RELOAD_EVERY - 1:
            bundle_again(life, number)
        if life.frames >= sample_at:
            if probe(life.engine) != first:
                raise AssertionError(f"after {life.frames} frames the same clip gives other masks than before")
            settle()
            yield measure(life)
            sample_at = life.frames - life.frames % every + every


def settle() -> None:
    """Wait until the threads of the last video are gone; a decoder may take a moment. Those that stay are counted.

    Threads of others may live beside: half a second in which none ends is the end of waiting.
    """
    count, since = threading.active_count(), time.monotonic()
    while count > 1 and time.monotonic() < since + 0.5:
        time.sleep(0.01)
        if threading.active_count() != count:
            count, since = threading.active_count(), time.monotonic()


def probe(engine: runtime.Engine) -> str:
    """Digest of the masks of a short clip, which must be the same for ever."""
    digest = hashlib.sha256()
    clip = [picture(i, 96, 160) for i in range(9)]
    if any(hasattr(n, "open") for n in engine.networks.values()):
        with engine.session([sentence(engine, 0)]) as session:
            for result in session.stream(clip):
                digest.update(np.packbits(result.masks).tobytes())
    if any(hasattr(n, "live") for n in engine.networks.values()):
        with engine.live() as session:
            for result in session.stream(clip, {0: {1: runtime.Box([0, 20, 40, 60])}}):
                digest.update(np.packbits(result.masks).tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------ verdict


def tenths(samples: list[Sample], name: str) -> tuple[float, float]:
    """Median of a figure over the second tenth of the samples, and over the last. The first is warm-up."""
    values, size = [getattr(s, name) for s in samples], max(1, len(samples) // 10)
    return float(np.median(values[size : 2 * size] or values[:1])), float(np.median(values[-size:]))


def verdict(samples: list[Sample]) -> list[str]:
    """What grew; empty when nothing did."""
    grew = []
    before, after = tenths(samples, "rss_mb")
    if after > before + GROWTH_MB:
        grew.append(f"memory {before} -> {after} MB")
    for name in ("files", "threads"):
        before, after = tenths(samples, name)
        if after > before:
            grew.append(f"{name} {before:g} -> {after:g}")
    return grew


def report(life: Life, samples: list[Sample], args: argparse.Namespace, complete: bool) -> dict[str, Any]:
    """What is written: what was run and on what, what happened, what grew, and every sample."""
    bundle = life.engine.bundle
    versions = {name: metadata.version(name) for name in ("numpy", "onnxruntime", "av", "tokenizers", "pillow")}
    drift = {
        name: dict(zip(("second_tenth", "last_tenth"), tenths(samples, name)))
        for name in ("rss_mb", "files", "threads", "latency_p95_ms")
    }
    return {
        "command": f"python tests/soak/run.py --engine {args.engine} --frames {args.frames} --every {args.every}",
        "complete": complete,
        "bundle": bundle.name,
        "bundle_sha256": hashlib.sha256("".join(sorted(bundle.manifest.files.values())).encode()).hexdigest()[:16],
        "machine": args.machine,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "python": platform.python_version(),
        "versions": versions,
        "frames": life.frames,
        "episodes": life.sessions,
        "trouble": dict(sorted(life.trouble.items())),
        "growth_allowed_mb": GROWTH_MB,
        "grew": verdict(samples),
        "drift": drift,
        "samples": [asdict(s) for s in samples],
    }


def write(path: Path, data: dict[str, Any]) -> None:
    """Replace the report in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    part.replace(path)


def plot(samples: list[dict[str, Any]], path: Path, machine: str) -> None:
    """Memory, handles and threads, and time over frames, into `path` with the suffixes .png and .svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "soak"  # the same data gives the same file
    figure, (top, middle, bottom) = pyplot.subplots(3, 1, sharex=True, figsize=(8, 6.5), layout="constrained")
    at = [s["frame"] for s in samples]
    top.plot(at, [s["rss_mb"] for s in samples])
    top.set(ylabel="resident memory, MB", ylim=(0, None))
    for name in ("files", "threads"):
        middle.plot(at, [s[name] for s in samples], label={"files": "open handles"}.get(name, name))
    middle.set(ylabel="count", ylim=(0, None))
    middle.legend(loc="center right")
    bottom.plot(at, [s["latency_p95_ms"] for s in samples])
    bottom.set(ylabel="95th percentile of a push, ms", xlabel="frames", ylim=(0, None))
    bottom.set_title(machine, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=110, metadata={"Date": None} if suffix == ".svg" else None)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    p = argparse.ArgumentParser(prog="python tests/soak/run.py", description=__doc__.splitlines()[0])
    p.add_argument("--engine", default="engines/nano")
    p.add_argument("--frames", type=int, default=10_000)
    p.add_argument("--every", type=int, default=100, help="frames between samples")
    p.add_argument("--threads", type=int, default=None, help="CPU threads (default: the backend decides)")
    p.add_argument("--machine", default="", help="a word about the machine, for the report")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.json"))
    p.add_argument("--replot", type=Path, metavar="JSON", help="draw the plot of this report again, and run nothing")
    p.add_argument("--plot", type=Path, help="plot, .png and .svg (default: beside --out)")
    return p


def main() -> int:
    args = parser().parse_args()
    if args.replot:
        data = json.loads(args.replot.read_text())
        plot(data["samples"], args.plot or args.replot, data["machine"])
        return 0
    video_sources.RETRY_SECONDS = 0.01  # the camera of this run comes back at once, or never
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, runtime.load(args.engine, threads=args.threads) as engine:
        life = Life(engine, Media(Path(folder)))
        for sample in run(life, args.frames, args.every):
            samples.append(sample)
            write(args.out, report(life, samples, args, complete=False))
            print(
                f"{sample.frame:7d} frames  {sample.rss_mb:7.1f} MB  {sample.files} handles  "
                f"{sample.threads} threads  {sample.latency_p95_ms:.1f} ms",
                flush=True,
            )
        data = report(life, samples, args, complete=True)
    write(args.out, data)
    plot(data["samples"], args.plot or args.out, args.machine)
    print("grew: " + "; ".join(data["grew"]) if data["grew"] else "nothing grew")
    return 1 if data["grew"] else 0


if __name__ == "__main__":
    sys.exit(main())
