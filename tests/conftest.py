import functools
import os
import signal
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, whichever test does that first
# processes of pytest-xdist share the cores: threads spin while they wait for others, and would take those of the rest
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
THREADS = max(1, (os.cpu_count() or 1) // PROCESSES)
if PROCESSES > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for torch, which reads it when it is imported


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # pytest-xdist would start the files with the fewest tests last


def pytest_collection_modifyitems(items):
    """Start files with slow tests first: one that starts last leaves the other processes without work."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def threads_of_onnxruntime():
    """Use no more than this process's part of the cores, for which ONNX Runtime has no variable."""
    from runtime.backends.ort import OrtBackend

    opens = OrtBackend._open
    with pytest.MonkeyPatch.context() as patch:
        if PROCESSES > 1:
            patch.setattr(OrtBackend, "_open", lambda backend, file, threads: opens(backend, file, threads or THREADS))
        yield


@pytest.fixture(scope="module", autouse=True)
def signals_work():
    """Fail where a module leaves signals changed; a signal stack that is gone ends the process right there."""
    numbers, received = sorted(signal.valid_signals() - {signal.SIGALRM}), []  # pytest-timeout's
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert signal.set_wakeup_fd(-1) == -1
    assert [signal.getsignal(number) for number in numbers] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
    signal.signal(signal.SIGUSR1, lambda *_: received.append(True))
    signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before[numbers.index(signal.SIGUSR1)])
    assert received


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """The toy bundle of `toy_samwise.py`, conditional memory on."""
    from helpers import toy_samwise as module

    return module.build(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="session")
def toy_sam2_bundle(tmp_path_factory) -> Path:
    """The toy bundle of `toy_sam2.py`."""
    from helpers import toy_sam2 as module

    return module.build(tmp_path_factory.mktemp("bundles") / "toy_sam2")


@pytest.fixture(scope="session")
def numpy_sam3_bundle(tmp_path_factory) -> Path:
    """The bundle of `numpy_sam3.py`, with tracker."""
    from helpers import numpy_sam3 as module

    return module.build(tmp_path_factory.mktemp("bundles") / "numpy_sam3")


@pytest.fixture(scope="module")
def shared_traces(tmp_path_factory):
    """Let the exports of a module take graphs from `trace_cache.py`."""
    from export import onnx
    from helpers import trace_cache

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each process has its own folder inside that of the run
        folder = folder.parent
    folder = folder / "traces"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "trace", functools.partial(trace_cache.trace, folder))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Run torch on one thread: small tensors wait for threads longer than they are computed, on a busy machine."""
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)
