"""Options and fixtures: `pytest benchmarks/ --benchmark-only [--engine engines/] [--model NAME] [--threads N]`."""

from __future__ import annotations

import os
import platform
import resource
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import runtime
from runtime.bundle import find

from . import arithmetic


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("samwise-runtime")
    group.addoption("--engine", default="engines/", help="a bundle, or a folder of bundles (default: %(default)s)")
    group.addoption("--model", default=None, help="only the bundle of this name")
    group.addoption("--backend", default="ort", help="backend (default: %(default)s)")
    group.addoption("--compiled", action="store_true", help="also against torch.compile; compiling takes minutes")
    group.addoption("--checkpoint", default=None, help="what the bundle was exported from: masks are compared too")
    group.addoption("--rounds", type=int, default=3, help="clips per case beside PyTorch; 1 skips the warm-up too (default: 3)")
    group.addoption("--windows", type=int, default=2, help="windows of frames in a clip beside PyTorch (default: 2)")
    group.addoption("--threads", type=int, default=None, help="CPU threads (default: the backend decides)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `bundle` runs once per bundle found; one that takes `stage` too, once per stage of each."""
    options = metafunc.config.option
    bundles = [b for b in find(options.engine) if options.model in (None, b.name)]
    if "stage" in metafunc.fixturenames:
        cases = [(b, name) for b in bundles for name in b.manifest.stages]
        metafunc.parametrize("bundle, stage", cases, ids=[f"{b.name}-{name}" for b, name in cases], scope="session")
    elif "bundle" in metafunc.fixturenames:
        metafunc.parametrize("bundle", bundles, ids=[b.name for b in bundles], scope="session")


@pytest.fixture(scope="session")
def loaded(bundle, request):
    """The engine of a bundle, loaded once."""
    options = request.config.option
    with runtime.load(bundle.folder, backend=options.backend, threads=options.threads, max_objects=16) as engine:
        yield engine


@pytest.fixture(scope="session")
def machine(request) -> dict:
    """What every figure is measured on; goes into `extra_info`."""
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() else platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__,
            "onnxruntime": _version("onnxruntime"), "torch": _version("torch"),
            "backend": request.config.option.backend, "threads": request.config.option.threads,
            "command": " ".join(("pytest", *map(str, request.config.invocation_params.args))),
            "matmul_gflops": round(arithmetic.matmul_peak() / 1e9, 1)}


@pytest.fixture
def info(benchmark, machine, bundle):
    """`info(**figures)` stores them beside the time, with p50 and p95, machine and bundle."""
    benchmark.extra_info.update(machine=machine, bundle=bundle.name, precision=bundle.manifest.precision,
                                bundle_sha256=_digest(bundle))
    yield benchmark.extra_info.update
    if benchmark.stats is not None:
        times = sorted(benchmark.stats.stats.data)
        benchmark.extra_info.update(p50=float(np.percentile(times, 50)), p95=float(np.percentile(times, 95)),
                                    peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        if flop := benchmark.extra_info.get("gflop"):
            rate = flop / benchmark.extra_info["p50"]
            benchmark.extra_info.update(gflops=round(rate, 1), of_matmul_peak=round(rate / machine["matmul_gflops"], 3))


def _digest(bundle) -> str:
    import hashlib

    return hashlib.sha256("".join(sorted(bundle.manifest.files.values())).encode()).hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
