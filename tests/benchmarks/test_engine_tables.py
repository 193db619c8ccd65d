"""The committed tables of built engines: every stage of the network, for every target."""

import json
import re
from pathlib import Path

import pytest

from export.layers.hiera import PUBLISHED_TRUNKS
from export.tensorrt import build

RESULTS = Path(__file__).parents[1].parent / "benchmarks" / "results"
TABLES = sorted(RESULTS.glob("engines-*.json"))
DOCS = (RESULTS.parent.parent / "docs" / "notes" / "gpu.md").read_text()


def stages_of(name):
    """Stage -> its symbols, from a toy network: they do not depend on its size."""
    pytest.importorskip("torch")
    from benchmarks import engine_table
    from export.models import sam2, samwise
    from export.networks import network
    from helpers import toy_networks

    if name == "sam3":
        module, model = engine_table.network(name, "tiny")
        return {stage.name: sorted(stage.spec.symbols) for stage in module.stages(model)}
    samwise_config, sam2_config = toy_networks.toy_samwise_config(), toy_networks.toy_sam2_config()
    model = samwise.Samwise(samwise_config) if name == "samwise" else sam2.Sam2(sam2_config)
    return {stage.name: sorted(stage.spec.symbols) for stage in network(name).stages(model)}


@pytest.fixture(scope="module")
def stages():
    return {name: stages_of(name) for name in ("samwise", "sam2", "sam3")}


def test_published_sizes():
    assert {path.stem for path in TABLES} >= {
        "engines-samwise-tiny",
        "engines-samwise-base_plus",
        "engines-samwise-large",
        "engines-sam2-tiny",
        "engines-sam2-base_plus",
        "engines-sam3-large",
    }


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_names_every_stage_and_every_target(path, stages):
    name, variant = re.fullmatch(r"engines-(\w+?)-(\w+)", path.stem).groups()
    assert variant in PUBLISHED_TRUNKS
    data = json.loads(path.read_text())
    assert data["precision"] == "fp16" and data["library"].startswith("tensorrt_rtx ")
    assert data["targets"] == [f"sm_{target}" for target in build.TARGETS]
    assert {stage: sorted(row["largest"]) for stage, row in data["stages"].items()} == stages[name]
    assert all(
        row["seconds"] > 0 and row["megabytes"] > 0 and row["scratch_megabytes"] >= 0 for row in data["stages"].values()
    )


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_document_has_the_sums(path):
    """A table that is measured again must be copied into docs/notes/gpu.md again."""
    rows = json.loads(path.read_text())["stages"]
    megabytes, seconds = (round(sum(row[key] for row in rows.values())) for key in ("megabytes", "seconds"))
    assert f"| {len(rows)} | {megabytes} | {seconds} |" in DOCS
