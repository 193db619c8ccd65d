"""Runs of `pytest benchmarks/` on toy bundles, and their entries in the report."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark")
pytest.importorskip("onnxruntime")

from benchmarks import report, tables

ROOT = Path(__file__).parents[1].parent


def measure(out, *options):
    """Cases by name of one run of the benchmarks in a process of their own."""
    command = [sys.executable, "-m", "pytest", *options, "--benchmark-only", "-p", "no:cacheprovider"]
    command += ["--benchmark-json", str(out)]
    # they are switched off where this variable says that tests run side by side
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return json.loads(out.read_text())


@pytest.mark.slow
def test_toys_through_every_benchmark_of_a_bundle(toy, toy_sam2_bundle, tmp_path):
    for bundle in (toy, toy_sam2_bundle):
        shutil.copytree(bundle, tmp_path / "bundles" / bundle.name)
    files = [
        f"benchmarks/bench_{name}.py"
        for name in ("stages", "clip", "objects", "start", "pytorch", "refersam", "export")
    ]
    measured = measure(
        tmp_path / "out.json", *files, "--engine", str(tmp_path / "bundles"), "--backend", "ort", "--rounds", "1"
    )
    kept = report.summarize(measured)
    assert set(kept) == {f"cpu-{bundle.name}-ort.json" for bundle in (toy, toy_sam2_bundle)}
    sentences, clicks = (kept[f"cpu-{bundle.name}-ort.json"] for bundle in (toy, toy_sam2_bundle))
    assert [c["sentences"] for c in tables.cases(sentences, "test_sentences")] == [1, 2, 4, 8]
    assert [c["objects"] for c in tables.cases(clicks, "test_objects")] == [1, 2, 4, 8]
    assert len(tables.first(sentences, "test_memory_fill", "seconds_by_frame")) == 9
    assert {c["stage"] for c in tables.cases(sentences, "test_stage")} >= {"hiera_0", "memory_attention"}
    assert all(c["median"] > 0 for found in kept.values() for c in found["cases"])
    assert tables.peak_of_one(sentences) > 20 and str(tmp_path) not in tables.page(list(kept.values()))


@pytest.mark.slow
def test_pytorch_beside_a_bundle_of_the_same_weights(tmp_path, shared_traces):
    torch = pytest.importorskip("torch")
    from export import bundle
    from export.networks import base
    from helpers import toy_exports

    model = toy_exports.samwise()
    torch.save({"model": model.state_dict(), "config": asdict(model.config)}, tmp_path / "tiny.pth")
    bundle.export_bundle(base.describe("samwise", model), tmp_path / "bundles", "tiny", check=False, variants=("ort",))
    options = f"--engine {tmp_path / 'bundles'} --backend ort --rounds 1 --windows 1 --pytorch eager bfloat16"
    options += f" --checkpoint {tmp_path / 'tiny.pth'}"
    measured = measure(tmp_path / "out.json", "benchmarks/bench_pytorch.py", *options.split())
    cases = tables.cases(report.summarize(measured)["cpu-tiny-ort.json"], "test_sentence")
    assert [c["pytorch"] for c in cases] == ["eager", "bfloat16"]
    assert cases[0]["worst_iou"] >= 0.999 and cases[0]["pytorch_over_runtime"] > 0
