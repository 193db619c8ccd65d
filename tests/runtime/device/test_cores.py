"""How many cores a process may use, and threads of the libraries where those are not all of the machine's."""

import os
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

import runtime
from runtime.device import workers
from runtime.device.workers import MAX_WORKERS, count_cores, limited_cores, num_cores

NANO = Path(__file__).parents[3] / "engines" / "nano"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Set the cores of the machine, those of the process and the quota of its container."""

    def limit(of_machine, of_process, quota=None):
        monkeypatch.setattr(os, "cpu_count", lambda: of_machine)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(of_process)), raising=False)
        monkeypatch.setattr(workers, "CPU_QUOTA", tmp_path / "cpu.max")
        if quota is not None:
            (tmp_path / "cpu.max").write_text(quota)

    return limit


@pytest.mark.parametrize(
    "of_machine, of_process, quota, cores, limited",
    [
        (8, 8, None, 8, None),
        (8, 8, "max 100000\n", 8, None),
        (8, 2, None, 2, 2),
        (64, 64, "200000 100000\n", 2, 2),
        (64, 64, "150000 100000\n", 2, 2),
        (64, 64, "20000 100000\n", 1, 1),
        (4, 2, "300000 100000\n", 2, 2),
        (4, 4, "800000 100000\n", 4, None),
        (4, 4, "", 4, None),
    ],
)
def test_affinity_and_quota(machine, of_machine, of_process, quota, cores, limited):
    machine(of_machine, of_process, quota)
    assert (num_cores(), limited_cores(), count_cores()) == (cores, limited, min(cores, MAX_WORKERS))


def threads_of(engine):
    """Return the threads of every stage, 0 for the library's choice."""
    sessions = {name: stage.stage._session for name, stage in engine.stages.items()}
    return {name: session.get_session_options().intra_op_num_threads for name, session in sessions.items()}


def test_onnxruntime_starts_no_more_threads_than_there_are_cores(machine):
    machine(8, 8, "300000 100000")
    with runtime.load(NANO, backend="ort", verify=False) as engine:
        assert threads_of(engine)["hiera_0"] == 3
    with runtime.load(NANO, backend="ort", threads=5, verify=False) as engine:
        assert threads_of(engine)["hiera_0"] == 5, "the caller knows better"


@pytest.mark.parametrize("quota, want", [(None, None), ("300000 100000", 3)])
def test_openvino_starts_no_more_threads_than_there_are_cores(machine, quota, want):
    pytest.importorskip("openvino")
    from runtime.backends.ov import OpenVinoBackend

    machine(8, 8, quota)
    assert OpenVinoBackend()._options.get("INFERENCE_NUM_THREADS") == want
    assert OpenVinoBackend(threads=5)._options["INFERENCE_NUM_THREADS"] == 5
