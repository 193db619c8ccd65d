"""Benchmark of `python -m export` from `--checkpoint` to a published bundle, every stage and a clip compared."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from . import rss


def test_export(benchmark, info, bundle, backend, request, tmp_path):
    """Time and peak memory of the whole command; the clip is compared in its own process."""
    pytest.importorskip("torch")
    checkpoint = request.config.option.checkpoint
    if checkpoint is None or backend != "ort":
        pytest.skip("needs --checkpoint; graphs are checked on ort")
    peaks = []
    command = [
        sys.executable,
        "-m",
        "export",
        bundle.manifest.network_names,
        "--checkpoint",
        checkpoint,
        "--name",
        "again",
    ]
    command += ["--precision", bundle.manifest.precision, "--out", str(tmp_path / "bundles")]

    def export() -> None:
        with open(tmp_path / "log", "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            while process.poll() is None:
                peaks.append(rss.peak_mb(process.pid))
                time.sleep(0.1)
            log.seek(0)
            assert process.returncode == 0, log.read()

    benchmark.pedantic(export, rounds=1)
    info(peak_rss_of_command_mb=max(peaks))
