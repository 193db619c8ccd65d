"""Every stage of every network on the fake CUDA runtime: what a warm run calls, and how much it launches.

Needs gcc, and an onnxruntime-gpu in a folder of its own, which is never imported here:

    pip install --no-deps --target FOLDER onnxruntime-gpu     # 256 MB; `.ci/run` does it
    ONNXRUNTIME_GPU=FOLDER python -m pytest tests/fake_cuda_runtime

`launches.json` may only shrink. `UPDATE_LAUNCHES=1` writes it again.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fake_cuda_runtime import stubs
from runtime.bundle.manifest import Manifest
from runtime.models import UPLOADING

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
SHIPPED = [ROOT / "engines" / "nano", ROOT / "engines" / "nano-concepts"]
TABLE = HERE / "launches.json"
PACKAGES = Path(os.environ.get("ONNXRUNTIME_GPU", "nowhere"))
WORK = ("launch", "gemm", "cudnn", "memset")
RECORDED = {*WORK, "copy_device_to_device"}
"""Calls that a CUDA graph can hold. Anything else waits, allocates, reads host memory or calls the host back."""

pytestmark = [
    pytest.mark.skipif(not (PACKAGES / stubs.PROVIDER).is_file(), reason="ONNXRUNTIME_GPU names no onnxruntime-gpu"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc"),
]


def toy_subgraphs(folder):
    """The memory attention, and the parts around the attention kernels, of a network whose graphs other tests trace as
    well."""
    from benchmarks.engine_table import half_graphs
    from export.models.samwise import CrossModalAdapterConfig
    from export.networks import samwise
    from export.split_attention import split_stages
    from helpers import toy_exports

    model = toy_exports.samwise(CrossModalAdapterConfig(width=32, heads=1, patches=(4, 2, 1)))
    whole = [stage for stage in samwise.stages(model) if stage.name == "memory_attention"]
    stages = [*whole, *(part for split in split_stages(model) for part in split.subgraphs)]
    return half_graphs(stages, folder, samwise.settings(model), ("default", "cuda"))


def toy_refersam(folder):
    from benchmarks.engine_table import half_graphs
    from export.models.refersam import ReferSam
    from export.networks import refersam
    from helpers.toy_networks import toy_refersam_config

    model = ReferSam(toy_refersam_config()).eval()
    return half_graphs(refersam.stages(model), folder, refersam.settings(model), ("default",))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, shared_traces):
    work = tmp_path_factory.mktemp("bundles")
    return [*SHIPPED, toy_subgraphs(work / "toy-split"), toy_refersam(work / "toy-refersam")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory, bundles):
    """Calls of a warm run by bundle and stage: at the sizes that engines are tuned for, and with several objects."""
    libraries = stubs.build(PACKAGES, tmp_path_factory.mktemp("cuda") / "stubs")
    paths = {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": os.pathsep.join(map(str, (PACKAGES, ROOT)))}
    command = [sys.executable, HERE / "measure.py", *bundles]
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture
def calls(measured):
    return measured["typical"]


def launches(found):
    return {
        bundle: {stage: sum(made.get(name, 0) for name in WORK) for stage, made in stages.items()}
        for bundle, stages in found.items()
    }


def test_every_stage_runs_with_every_computing_node_on_cuda(calls):
    """`OrtCudaBackend.load` refuses a stage that has another node on the CPU than arithmetic of shapes."""
    assert [(b, s, made["error"]) for b, stages in calls.items() for s, made in stages.items() if "error" in made] == []
    assert all(min(launches({b: stages})[b].values()) > 0 for b, stages in calls.items())


@pytest.mark.parametrize("sizes", ["typical", "several"])
def test_a_warm_run_can_be_recorded(measured, sizes):
    """With several objects, products upload tables of pointers that are single products with one."""
    others = {
        (bundle, stage): set(made) - RECORDED
        for bundle, stages in measured[sizes].items()
        for stage, made in stages.items()
        if set(made) - RECORDED
    }
    assert others == {}


def test_the_runtime_records_every_stage(bundles):
    """Those of earlier exports that may not be recorded are `graph_safe` by now."""
    stages = [stage for folder in bundles for stage in Manifest.load(folder).stages.values()]
    assert {stage.name for stage in stages} >= UPLOADING
    assert all(stage.graph_safe for stage in stages if stage.name in UPLOADING)


def test_no_stage_launches_more_than_the_table_says(calls):
    found = launches(calls)
    if os.environ.get("UPDATE_LAUNCHES"):
        TABLE.write_text(json.dumps(found, indent=1) + "\n")
    table = json.loads(TABLE.read_text())
    assert {b: set(stages) for b, stages in found.items()} == {b: set(stages) for b, stages in table.items()}
    grown = [(b, s, n, table[b][s]) for b, stages in found.items() for s, n in stages.items() if n > table[b][s]]
    assert not grown, "(bundle, stage, launches, launches of the table)"
