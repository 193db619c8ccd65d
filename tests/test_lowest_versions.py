"""The lower bounds of pyproject.toml are the versions that CI tests, and those that messages name."""

from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11
from packaging.requirements import Requirement
from packaging.version import Version

from runtime import versions

ROOT = Path(__file__).parents[1]
UNTESTED = {"tensorrt", "fuzz", "dev", "ray", "peers"}
"""Extras that CI cannot install everywhere, whose versions are pinned, or that are large (Ray, see
CONTRIBUTING.md; what a benchmark runs beside the runtime)."""


def bounds():
    """Return (library, lower bound) of every requirement."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for name, lines in project["optional-dependencies"].items() if name not in UNTESTED]
    for line in [*project["dependencies"], *(line for lines in extras for line in lines)]:
        requirement = Requirement(line)
        yield requirement.name, next(Version(s.version) for s in requirement.specifier if s.operator == ">=")


def lowest():
    lines = (
        line.partition("#")[0].strip() for line in (ROOT / "tests" / "lowest-versions.txt").read_text().splitlines()
    )
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines if line)}


def test_every_bound_is_a_tested_version():
    assert dict(bounds()) == lowest()


def test_gpu_libraries_bring_what_they_load():
    """onnxruntime-gpu finds CUDA and cuDNN in pip's packages; cuda-core needs bindings that only its extra brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = {r.name: r.extras for name in ("gpu", "tensorrt", "tensorrt-rtx") for r in map(Requirement, project[name])}
    assert extras["onnxruntime-gpu"] == {"cuda", "cudnn"} and extras["cuda-core"] == {"cu13"}


def test_one_bound_per_library():
    assert len(set(bounds())) == len({name for name, _ in bounds()})


@pytest.mark.parametrize("name", versions.LOWEST)
def test_messages_name_the_bound(name):
    assert Version(versions.LOWEST[name]) == dict(bounds())[name]
