"""Start of the command line: time to the first mask, and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import rss

PATIENCE = 300
"""Seconds after which a start counts as failed."""


def test_first_mask(benchmark, info, bundle, backend, tmp_path, request):
    """`python -m runtime.run` on the bundle's demonstration, timed from the command to the first line of results."""
    if bundle.manifest.demo is None:
        pytest.skip("this bundle brings no demonstration")
    peaks, rounds = [], iter(range(100))

    def start() -> None:
        out = tmp_path / str(next(rounds))
        process = launch(bundle, backend, out, request.config.option.threads)
        try:
            wait(out / "results.jsonl", process)
            peaks.append(rss.peak_mb(process.pid))
        finally:
            process.terminate()
            process.wait()

    benchmark.pedantic(start, rounds=3)
    info(peak_rss_of_command_mb=max(peaks))


def launch(bundle, backend: str, out: Path, threads: int | None) -> subprocess.Popen:
    command = [sys.executable, "-m", "runtime.run", "--engine", str(bundle.folder), "--backend", backend]
    command += ["--out", str(out), *(("--threads", str(threads)) if threads else ())]
    with open(out.with_suffix(".log"), "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def wait(results: Path, process: subprocess.Popen) -> None:
    """Return when a whole line of results is on disk."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if results.exists() and b"\n" in results.read_bytes():
            return
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode} before its first result; see {results.parent}.log")
        time.sleep(0.005)
    raise RuntimeError(f"no result after {PATIENCE} s")
