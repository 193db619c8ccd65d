"""Options and fixtures: `pytest benchmarks/ --benchmark-only [--engine engines/] [--model NAME] [--threads N]`."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.backends import BACKENDS, create
from runtime.bundle.bundle import find
from runtime.errors import BackendError, SamwiseRuntimeError

from . import flops, rss, tables


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("samwise-runtime").addoption
    add("--engine", default="engines/", help="a bundle, or a folder of bundles (default: %(default)s)")
    add("--model", help="only the bundle of this name")
    add("--backend", nargs="+", metavar="NAME", help="backends (default: every one that is present)")
    how = "PyTorch variants to compare with: eager, compiled (takes minutes), bfloat16 (autocast); default: eager"
    add("--pytorch", nargs="+", default=["eager"], choices=tuple(tables.PYTORCH), metavar="HOW", help=how)
    add("--checkpoint", help="source of the bundle: masks are compared too")
    add("--rounds", type=int, default=3, help="clips per case; 1 skips the warm-up too (default: 3)")
    add("--windows", type=int, default=2, help="windows of frames in a clip beside PyTorch (default: 2)")
    add("--threads", type=int, help="CPU threads (default: the backend decides)")
    add("--keep", metavar="DIR", help="folder in which bench_sam3.py keeps its bundle for the next run")
    precisions = ("fp32", "int8", "int8-weights", "int4-weights")
    add("--precision", default="fp32", choices=precisions, help="of SAM 3 in bench_sam3.py (default: %(default)s)")
    add("--layers", type=int, help="layers of SAM 3's trunk and text encoder in bench_sam3.py (default: as published)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that take `bundle` by bundle, those that take `stage` by stage of each bundle, and those that
    need an engine by backend."""
    options = metafunc.config.option
    bundles = [b for b in find(options.engine) if options.model in (None, b.name)]
    if "stage" in metafunc.fixturenames:
        cases = [(b, name) for b in bundles for name in b.manifest.stages]
        metafunc.parametrize("bundle, stage", cases, ids=[f"{b.name}-{name}" for b, name in cases], scope="session")
    elif "bundle" in metafunc.fixturenames:
        metafunc.parametrize("bundle", bundles, ids=[b.name for b in bundles], scope="session")
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", options.backend or present(), scope="session")


@cache
def present() -> list[str]:
    """Return the names of the backends that work on this machine."""
    found = []
    for name in BACKENDS:
        with suppress(BackendError):
            create(name)
            found.append(name)
    return found


@pytest.fixture(scope="session")
def loaded(bundle, backend, machine, request):
    """The engine of a bundle, loaded once; after `machine` has measured the peak without it."""
    options = request.config.option
    try:
        engine = runtime.load(bundle.folder, backend=backend, threads=options.threads, max_objects=16)
    except SamwiseRuntimeError as error:
        if options.backend:
            raise
        pytest.skip(f"{backend}: {error}")  # engines have to be built for a GPU first
    with engine:
        yield engine


@pytest.fixture
def pace(request) -> dict[str, int]:
    """Rounds that a clip is measured: `--rounds`, after a warm-up."""
    rounds = request.config.option.rounds
    return {"rounds": rounds, "warmup_rounds": int(rounds > 1)}


@pytest.fixture(scope="session")
def machine(request) -> dict:
    """Description of the machine, for `extra_info`."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numpy", "onnxruntime", "openvino", "torch")},
        "threads": request.config.option.threads,
        "command": " ".join(("pytest", *map(str, request.config.invocation_params.args))),
        "matmul_gflops": round(flops.matmul_peak() / 1e9, 1),
    }


@pytest.fixture
def info(benchmark, machine, bundle, backend):
    """`info(**figures)` stores them beside the time, with p50 and p95, machine and bundle."""
    benchmark.extra_info.update(
        machine=machine | {"backend": backend},
        bundle=bundle.name,
        precision=bundle.manifest.precision,
        bundle_sha256=sha256("".join(sorted(bundle.manifest.files.values())).encode()).hexdigest()[:16],
    )
    rss.reset_peak()
    yield benchmark.extra_info.update
    if benchmark.stats is not None:
        times = sorted(benchmark.stats.stats.data)
        benchmark.extra_info.update(
            p50=float(np.percentile(times, 50)), p95=float(np.percentile(times, 95)), peak_rss_mb=rss.peak_mb()
        )
        if flop := benchmark.extra_info.get("gflop"):
            rate = flop / benchmark.extra_info["p50"]
            benchmark.extra_info.update(gflops=round(rate, 1), of_matmul_peak=round(rate / machine["matmul_gflops"], 3))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
