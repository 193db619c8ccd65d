"""`export.verify --runs`: Polygraphy's files and results, ONNX Runtime against itself and a perturbed graph."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnx")
polygraphy = pytest.importorskip("polygraphy")

import onnx
from onnx import numpy_helper
from polygraphy.comparator import RunResults
from polygraphy.json import load_json

from export.verify import __main__ as verify
from export.verify import backend_check, parity, polygraphy_dump
from helpers import toy_samwise as toy
from runtime.backends.ort import OrtBackend
from runtime.bundle import engine_index
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import StageSpec, TensorSpec
from runtime.errors import UserError

POLYGRAPHY = "import sys; from polygraphy.tools import main; sys.exit(main())"
"""Entry point of the command `polygraphy`."""


class Perturbed(OrtBackend):
    """ONNX Runtime whose `text_1` is off by a little; it says that it has engines, so a pass would be marked."""

    name, variants, library, version = "perturbed", ("default",), "tensorrt", "1"

    def load(self, file, spec):
        if spec.name != "text_1":
            return super().load(file, spec)
        model = onnx.load(file)
        last = model.graph.node[-1]
        model.graph.initializer.append(numpy_helper.from_array(np.array(1.05, np.float32), "off"))
        model.graph.node.append(onnx.helper.make_node("Mul", ["before", "off"], [last.output[0]]))
        last.output[0] = "before"
        other = file.with_name("perturbed.onnx")
        onnx.save(model, other)
        return super().load(other, spec)


@pytest.fixture
def bundle(tmp_path):
    return choose(toy.build(tmp_path / "toy"))


def test_a_backend_that_agrees(bundle, tmp_path):
    kept = polygraphy_dump.PolygraphyDump(tmp_path / "runs", "openvino")
    rows, clip = backend_check.check_backend(bundle, "ort", 1, kept)
    assert all(r.passed for r in (*rows, *clip)) and len(kept.rows) == len(rows)
    assert all(row["passed"] for row in kept.rows) and not kept.hints(bundle.folder)
    report = json.loads((tmp_path / "runs" / polygraphy_dump.REPORT).read_text())
    assert {row["stage"] for row in report["runs"]} == set(bundle.manifest.stages)
    row = next(row for row in report["runs"] if row["stage"] == "neck")
    (feed,) = load_json(str(tmp_path / "runs" / row["inputs"]))
    assert set(feed) == {t.name for t in bundle.manifest.stages["neck"].inputs}
    results = RunResults.load(str(tmp_path / "runs" / row["outputs"]))
    assert list(results.keys()) == ["onnxruntime", "openvino"]
    assert set(results["onnxruntime"][0].keys()) == {t.name for t in bundle.manifest.stages["neck"].outputs}


def test_perturbed_stage_is_refused_by_both_and_not_marked(bundle, tmp_path, monkeypatch, capsys):
    create, marked = backend_check.create, []
    new = lambda name, threads: Perturbed(1) if name == "perturbed" else create(name, threads)  # noqa: E731
    monkeypatch.setattr(backend_check, "create", new)
    monkeypatch.setattr(engine_index, "mark_verified", lambda *arguments: marked.append(arguments))
    folder = tmp_path / "runs"
    assert verify.main([str(bundle.folder), "--backend", "perturbed", "--runs", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "text_1" in err and "misses its threshold" in err and not marked
    assert "not text_1" in out and "polygraphy debug reduce" in out
    report = json.loads((folder / polygraphy_dump.REPORT).read_text())
    assert {row["stage"] for row in report["runs"] if not row["passed"]} == {"text_1"}
    row = next(row for row in report["runs"] if row["stage"] == "text_1")
    assert row["least_decibels"] == pytest.approx(80) and 20 < row["found"]["text_1"]["decibels"] < 40
    results = RunResults.load(str(folder / row["outputs"]))
    assert list(results.keys()) == ["onnxruntime", "perturbed"]


def test_the_same_threshold_on_both_sides(tmp_path):
    """Relative L2 error and signal-to-noise ratio are one number in two units."""
    outputs = (TensorSpec("y", "float16", (64,)), TensorSpec("b", "bool", (2,)))
    spec = StageSpec("s", (TensorSpec("x", "float32", (64,)),), outputs)
    want = np.random.default_rng(0).standard_normal(64).astype(np.float16)
    for error, limit in ((0.02, 0.03), (0.04, 0.03)):
        got = (want.astype(np.float64) * (1 + error)).astype(np.float16)
        kept = polygraphy_dump.PolygraphyDump(tmp_path, "other")
        flags = np.array([True, False])
        row = kept.add(spec, "s.onnx", {}, {"x": want}, {"y": want, "b": flags}, {"y": got, "b": flags}, limit)
        ours = parity.compare_outputs("s", {}, spec, {"y": got, "b": flags}, {"y": want, "b": flags}, limit)
        assert row["passed"] == ours.passed == (error < limit)
        assert row["found"]["y"]["decibels"] == pytest.approx(polygraphy_dump.decibels(ours.error), abs=1e-3)
        assert row["found"]["b"] == {"equal": True}
    row = kept.add(spec, "s.onnx", {}, {"x": want}, {"y": want, "b": flags}, {"y": want, "b": ~flags}, limit)
    assert not row["passed"] and row["found"]["y"]["decibels"] == "inf"
    got = {"y": want * np.float16(np.nan), "b": flags}
    row = kept.add(spec, "s.onnx", {}, {"x": want}, {"y": want, "b": flags}, got, limit)
    assert not row["passed"]


@pytest.mark.slow
def test_polygraphys_own_command_reads_the_files(bundle, tmp_path):
    """`polygraphy run` with what was saved: the same graph agrees, another one does not."""
    kept = polygraphy_dump.PolygraphyDump(tmp_path / "runs", "ort")
    backend_check.check_backend(bundle, "ort", 1, kept)
    row = next(row for row in kept.rows if row["stage"] == "text_1")
    graph = bundle.folder / row["graph"]
    Perturbed(1).load(graph, bundle.manifest.stages["text_1"])
    codes = []
    for file in (graph, graph.with_name("perturbed.onnx")):
        command = [
            sys.executable,
            "-c",
            POLYGRAPHY,
            "run",
            str(file),
            "--onnxrt",
            "--load-inputs",
            str(kept.folder / row["inputs"]),
            "--load-outputs",
            str(kept.folder / row["outputs"]),
        ]
        done = subprocess.run(command, capture_output=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
        codes.append(done.returncode)
    assert codes == [0, 1]


def test_without_polygraphy_or_a_place_to_write(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        polygraphy_dump.PolygraphyDump(tmp_path / "file" / "more", "ort")
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(UserError, match=r"pip install 'samwise-runtime\[polygraphy\]'"):
        polygraphy_dump.PolygraphyDump(tmp_path, "ort")
