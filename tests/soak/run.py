"""Soak test: sessions of every kind, invalid frames and damaged files, with memory, files and threads watched.

    python tests/soak/run.py --engine engines/nano --frames 10000 --out benchmarks/results/soak_nano.json
    python tests/soak/run.py --frames 2000 --latency low --change-every 50 --out soak_changes.json

With `--latency` one session takes all frames instead, with `--change-every` a sentence comes and another one goes.

Writes a JSON report with a sample about every `--every` frames, again after each sample, so that a stopped run leaves
its measurements; at the end a plot beside it (PNG and SVG). Samples are taken between sessions, when everything that a
session holds must have been returned. Exit code 1 when memory, files or threads grew, when the same clip gave other
masks, or when a fault did not end in the expected one-line error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
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
from helpers import resources
from helpers.damaged_media import make_files
from runtime.media import live
from soak.one_session import one_session
from soak.scenarios import CLIPS, RELOAD_EVERY, SoakRunner, reload_bundle, scenarios, sentence

GROWTH_MB = 32
"""Allowed growth of resident memory (arenas, page cache of decoders) from the second tenth of a run to the last."""
LIBRARIES = ("numpy", "onnxruntime", "av", "tokenizers", "pillow")


@dataclass(frozen=True, slots=True)
class Sample:
    """State after `frame` frames. Latencies are of the calls of `push` since the previous sample, in milliseconds. Most
    calls only take a frame; the 95th percentile is that of calls that complete a clip and compute all of it."""

    frame: int
    rss_mb: float
    files: int
    threads: int
    latency_p50_ms: float = 0.0
    latency_p95_ms: float = 0.0


def measure(runner: SoakRunner) -> Sample:
    """Take a sample, and clear the latencies of the runner."""
    p50, p95 = (1000 * np.percentile(runner.latencies or [0.0], (50, 95))).round(3).tolist()
    runner.latencies.clear()
    return Sample(runner.frames, resources.resident_mb(), resources.files(), resources.threads(), p50, p95)


def run(runner: SoakRunner, frames: int, every: int) -> Iterator[Sample]:
    """Run one scenario after the other for `frames` frames; yield a sample about every `every` frames."""
    sequence, sample_at, first = scenarios(runner.engine), every, mask_digest(runner.engine)
    while runner.frames < frames:
        number = runner.sessions
        sequence[number % len(sequence)](runner, number // len(sequence))
        runner.sessions += 1
        if number % RELOAD_EVERY == RELOAD_EVERY - 1:
            reload_bundle(runner, number)
        if runner.frames >= sample_at:
            if mask_digest(runner.engine) != first:
                raise AssertionError(f"after {runner.frames} frames the same clip gives other masks than before")
            resources.wait_for_threads()
            yield measure(runner)
            sample_at = runner.frames - runner.frames % every + every


def run_session(
    runner: SoakRunner, frames: int, every: int, latency: str, change_every: int | None = None
) -> Iterator[Sample]:
    """Push `frames` frames to one session; yield a sample every `every` frames."""
    for _ in one_session(runner, frames, latency, change_every):
        if runner.frames % every == 0:
            yield measure(runner)


def mask_digest(engine: runtime.Engine) -> str:
    """Digest of the masks of a short clip, which must never change."""
    digest, clip, results = hashlib.sha256(), CLIPS[0][:9], []
    if runtime.Capability.TEXT_VIDEO in engine.capabilities:
        with engine.session([sentence(engine, 0)]) as session:
            results += session.stream(clip)
    if runtime.Capability.PROMPT_VIDEO in engine.capabilities:
        with engine.live() as session:
            results += session.stream(clip, {0: {1: runtime.Box([0, 20, 40, 60])}})
    for result in results:
        digest.update(np.packbits(result.masks).tobytes())
    return digest.hexdigest()


def tenths(samples: list[Sample], name: str) -> tuple[float, float]:
    """Median of a figure over the second tenth of the samples and over the last. The first is warm-up."""
    values, size = [getattr(s, name) for s in samples], max(1, len(samples) // 10)
    return float(np.median(values[size : 2 * size] or values[:1])), float(np.median(values[-size:]))


def find_growth(samples: list[Sample]) -> list[str]:
    """Describe each resource that grew."""
    grew = []
    for name, allowed in (("rss_mb", GROWTH_MB), ("files", 0), ("threads", 0)):
        before, after = tenths(samples, name)
        if after > before + allowed:
            grew.append(f"{name} {before:g} -> {after:g}")
    return grew


def session_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of a run of one session that were given."""
    return {name: getattr(args, name) for name in ("latency", "change_every") if getattr(args, name) is not None}


def report(runner: SoakRunner, samples: list[Sample], args: argparse.Namespace, complete: bool) -> dict[str, Any]:
    """Content of the report: command, machine, counts, growth, and every sample."""
    bundle = runner.engine.bundle
    drift = {
        name: dict(zip(("second_tenth", "last_tenth"), tenths(samples, name), strict=True))
        for name in ("rss_mb", "files", "threads", "latency_p95_ms")
    }
    return {
        "command": f"python tests/soak/run.py --engine {args.engine} --frames {args.frames} --every {args.every}"
        + "".join(f" --{name.replace('_', '-')} {value}" for name, value in session_options(args).items()),
        "complete": complete,
        "bundle": bundle.name,
        "bundle_sha256": hashlib.sha256("".join(sorted(bundle.manifest.files.values())).encode()).hexdigest()[:16],
        "machine": args.machine,
        "cores": os.cpu_count(),
        "threads": args.threads,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "frames": runner.frames,
        "scenarios": runner.sessions,
        "expected_errors": dict(sorted(runner.expected_errors.items())),
        "growth_allowed_mb": GROWTH_MB,
        "grew": find_growth(samples),
        "drift": drift,
        "samples": [asdict(s) for s in samples],
    }


def write(path: Path, data: dict[str, Any]) -> None:
    """Replace the report in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(data, indent=1) + "\n")
    part.replace(path)


def plot(samples: list[Sample], path: Path, machine: str) -> None:
    """Plot memory, handles, threads and latency over frames into `path` with the suffixes .png and .svg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "soak"  # the same data gives the same file
    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(8, 6.5), layout="constrained")
    titles = {"rss_mb": "resident memory, MB", "latency_p95_ms": "95th percentile of a push, ms"}
    for panel, names in zip(axes, (["rss_mb"], ["files", "threads"], ["latency_p95_ms"]), strict=True):
        for name in names:
            panel.plot([s.frame for s in samples], [getattr(s, name) for s in samples], label=name)
        panel.set(ylabel=titles.get(names[0], "count"), ylim=(0, None))
    axes[1].legend(loc="center right")
    axes[2].set_xlabel("frames")
    axes[2].set_title(machine, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=110, metadata={"Date": None} if suffix == ".svg" else None)
    pyplot.close(figure)


def build_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    p = argparse.ArgumentParser(prog="python tests/soak/run.py", description=__doc__.splitlines()[0])
    p.add_argument("--engine", default="engines/nano")
    p.add_argument("--frames", type=int, default=10_000)
    p.add_argument("--every", type=int, default=100, help="frames between samples")
    p.add_argument("--latency", choices=("clip", "low"), help="one session over all frames, with this latency")
    p.add_argument("--change-every", type=int, help="frames between changes of a sentence of this session")
    p.add_argument("--threads", type=int, default=None, help="CPU threads (default: the backend decides)")
    p.add_argument("--machine", default="", help="description of the machine, for the report")
    p.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.json"))
    p.add_argument("--plot", type=Path, help="plot, .png and .svg (default: beside --out; none of one session)")
    return p


def main() -> int:
    parser = build_parser()
    args = parser.parse_args()
    if args.change_every and not args.latency:
        parser.error("--change-every needs --latency: it concerns a run of one session")
    live.RETRY_SECONDS = 0.01  # the camera of this run comes back at once, or never
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, runtime.load(args.engine, threads=args.threads) as engine:
        runner = SoakRunner(engine, make_files(Path(folder)))
        size = (runner, args.frames, args.every)
        for sample in run_session(*size, **session_options(args)) if args.latency else run(*size):
            samples.append(sample)
            write(args.out, report(runner, samples, args, complete=False))
            print(*(f"{name} {value:g}" for name, value in asdict(sample).items()), sep="  ", flush=True)
        data = report(runner, samples, args, complete=True)
    write(args.out, data)
    if args.plot or not args.latency:
        plot(samples, args.plot or args.out, args.machine)
    print("grew: " + "; ".join(data["grew"]) if data["grew"] else "nothing grew")
    return 1 if data["grew"] else 0


if __name__ == "__main__":
    sys.exit(main())
