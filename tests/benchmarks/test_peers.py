"""Other implementations of SAM 2 in processes of their own: masks, times and tables."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import peer_tables, report, tables

FOUND = importlib.util.find_spec("transformers.models.sam2_video")


def row(peer, side, seconds):
    shared = {"first_mask": 2.5, "peak_rss_mb": 900, "installed_mb": 300, "worst_iou": 0.99991, "mean_iou": 1.0}
    return {"peer": peer, "side": side, "seconds_per_frame": seconds, **shared}


@pytest.fixture
def measured():
    rows = [row("ours", 64, 1.0), row("transformers", 64, 3.0), row("ours", 32, 0.25)]
    missing = {"sam2": "sam2 is not installed"}
    machine = {"cpu": "Some CPU", "cores": 2, "backend": "peers", "torch": "2.13", "command": "pytest /a/b/bench.py"}
    info = {"machine": machine, "bundle": "sam2.1-toy", "frames": 8, "rows": rows, "missing": missing}
    case = {"name": "test_peers[toy]", "stats": {"rounds": 1, "median": 9.0}, "extra_info": info}
    (name, result), *_ = report.summarize({"datetime": "2026-11-26T10:00:00", "benchmarks": [case]}).items()
    assert name == "peers-sam2.1-toy.json"
    return result


def test_tables(measured):
    text = peer_tables.section([measured])
    assert "| **ours** | 64 | 1 | 3.00x | 2.5 | 900 | 300 | 0.9999 | 1.0000 |" in text
    assert "| **ours** | 32 | 0.25 |  |" in text and "`sam2` (sam2 is not installed)" in text
    assert "sam2.1-toy, 8 frames: ours 3.00x (" in peer_tables.line([measured])
    assert peer_tables.section([]) == peer_tables.line([]) == ""


def test_the_line_links_to_the_section(measured):
    link = peer_tables.line([measured]).rpartition("#")[2].rstrip(").")
    headings = [line[3:] for line in tables.page([], [measured]).splitlines() if line.startswith("## ")]
    assert link in [heading.lower().replace(" ", "-") for heading in headings]


@pytest.mark.slow
@pytest.mark.skipif(FOUND is None, reason="needs transformers 4.56 or newer")
def test_processes_agree(tmp_path):
    """The runtime and `transformers` on a small network."""
    pytest.importorskip("torch")
    import transformers

    from benchmarks import bench_peers
    from helpers import transformers_sam2

    model = transformers.Sam2VideoModel(transformers_sam2.config(size=128)).eval()
    bench_peers.draw(model)
    model.save_pretrained(tmp_path / "weights")
    sides = bench_peers.write_weights("tiny", tmp_path, str(tmp_path / "weights"))
    assert sides == (128, 64)
    job = bench_peers.Job(tmp_path, 64)
    bench_peers.export(job)
    bench_peers.write_clip(job)
    processes = [bench_peers.Process(name, job) for name in ("ours", "transformers")]
    try:
        bench_peers.take_turns(processes)
        ours, theirs = (process.row() for process in processes)
    finally:
        for process in processes:
            process.end()
    assert ours["worst_iou"] > 0.99 and 0.02 < ours["area"] < 0.98 and ours["peak_rss_mb"] < theirs["peak_rss_mb"]
    assert ours["seconds_per_frame"] > 0 and 0 < ours["installed_mb"] < theirs["installed_mb"]
    assert ours["first_mask"] > ours["seconds_per_frame"] and processes[0].masks().dtype == np.bool_


@pytest.mark.skipif(FOUND is None, reason="needs transformers 4.56 or newer")
def test_a_failing_process_says_why(tmp_path):
    from benchmarks import bench_peers

    with pytest.raises(RuntimeError, match="(?s)ours ended with 1: .*BundleError"):
        bench_peers.Process("ours", bench_peers.Job(tmp_path, 64))


def test_installed_size_follows_requirements(monkeypatch):
    from benchmarks import bench_peers

    def distribution(name):
        if name not in ("a", "b-c"):
            raise bench_peers.metadata.PackageNotFoundError(name)
        requires = {"a": ["B_C>=1", "gone; python_version < '3'", "extra; extra == 'x'"], "b-c": ["a"]}[name]
        return SimpleNamespace(files=[SimpleNamespace(size=2_000_000)], requires=requires)

    monkeypatch.setattr(bench_peers.metadata, "distribution", distribution)
    assert bench_peers.installed_mb(["a"]) == 4
