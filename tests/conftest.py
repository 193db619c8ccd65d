import functools
import os
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, whichever test does that first


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
