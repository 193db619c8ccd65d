"""The comparison of precisions: pairs, resuming, and the committed result."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks import precisions
from benchmarks.datasets import Case
from runtime.bundle.manifest import Manifest
from runtime.errors import UserError

ROOT = Path(__file__).parents[1].parent
KEYS = {name: {"graphs": name} for name in ("fp32", "int8")}


def case(number):
    """Two sentences about one square each, eight frames."""
    masks = np.zeros((2, 8, 32, 32), bool)
    masks[0, :, 4:14, 4:14] = masks[1, :, 16:28, 10 + number : 22 + number] = True
    return Case(f"clip{number}", lambda: iter(()), ["a", "b"], list(masks))


@pytest.fixture
def asked(monkeypatch):
    """Engines are names; "fp32" is right, "int8" loses a row of every mask. Returns the clips that were run."""
    calls = []

    def sentences(engine, case, texts, ablation):
        calls.append((engine, case.name))
        masks = np.stack(case.masks)
        if engine == "int8":
            masks[:, :, :5] = False
            masks[:, :, 16] = False
        return masks

    monkeypatch.setattr(precisions, "sentences", sentences)
    return calls


def run(path, numbers, keys=KEYS):
    return precisions.run({name: name for name in keys}, keys, case, numbers, path, lambda text: None)


def test_pairs(asked, tmp_path):
    rows = run(tmp_path / "r.json", range(3))
    assert rows["fp32"]["J&F"] == rows["fp32"]["iou_mean"] == rows["fp32"]["cpu_speed"] == 1.0
    assert rows["fp32"]["difference_interval"] == [0, 0]
    low, high = rows["int8"]["difference_interval"]
    assert low <= rows["int8"]["difference"] <= high < 0 and rows["int8"]["n"] == 6
    assert rows["int8"]["iou_least"] == 0.9 and 0.9 < rows["int8"]["iou_mean"] < 0.93
    text = precisions.table(rows)
    assert "| int8 |" in text and len(text.splitlines()) == 4


def test_comparison_resumes_from_saved_results(asked, tmp_path):
    path = tmp_path / "r.json"
    first = run(path, range(2))
    asked.clear()
    assert run(path, range(2)) == first and asked == [], "nothing is measured twice"
    run(path, range(3))
    assert {name for _, name in asked} == {"clip2"}


def test_changed_files_are_measured_again(asked, tmp_path):
    path = tmp_path / "r.json"
    run(path, range(2))
    asked.clear()
    run(path, range(2), KEYS | {"int8": {"graphs": "new weights"}})
    assert {name for engine, name in asked if engine == "int8"} == {"clip0", "clip1"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"ways": 7}', '{"ways": {"fp32": {}}}'])
def test_damaged_result_is_ignored(tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    assert precisions.read(tmp_path / "r.json", KEYS) == {"fp32": {}, "int8": {}}


def test_missing_bundles_are_a_one_line_error(tmp_path, capsys):
    assert precisions.main(["--shipped", str(tmp_path), "--engines", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def options(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"weights")
    return precisions.build_parser().parse_args(
        [
            "--checkpoint",
            str(tmp_path / "w.pth"),
            "--engines",
            str(tmp_path / "engines"),
            "--shipped",
            str(tmp_path / "shipped"),
        ]
    )


def bundle(folder, digest):
    folder.mkdir(parents=True)
    Manifest({"toy": {}}, "v", "fp32", 64, {}, {}, provenance={"checkpoint_sha256": digest}).dump(folder)
    return folder


def test_bundles_are_exported_once_for_these_weights(tmp_path, monkeypatch):
    wanted, commands = options(tmp_path), []
    weights = hashlib.sha256(b"weights").hexdigest()
    bundle(tmp_path / "shipped", weights)
    bundle(tmp_path / "engines" / "nano-int8", "of other weights")

    def export(command):
        commands.append(command)
        name = command[command.index("--name") + 1]
        shutil.rmtree(tmp_path / "engines" / name, ignore_errors=True)
        bundle(tmp_path / "engines" / name, weights)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(precisions.subprocess, "run", export)
    names = {"shipped": "shipped"} | {precision: f"nano-{precision}" for precision in precisions.PRECISIONS}
    assert {k: b.name for k, b in precisions.bundles(wanted).items()} == names
    assert [c[c.index("--precision") + 1] for c in commands] == list(precisions.PRECISIONS)
    assert all(str(tmp_path / "w.pth") in c and precisions.NETWORK in c for c in commands)
    precisions.bundles(wanted)
    assert len(commands) == len(precisions.PRECISIONS), "they are there now"


def test_without_a_checkpoint_the_weights_are_those_of_the_shipped_graphs(tmp_path, monkeypatch):
    wanted, made = options(tmp_path), []
    wanted.checkpoint = None
    Manifest({"toy": {}}, "v", "fp16", 64, {}, {}, tokenizer="t.json").dump(bundle(tmp_path / "shipped", "x"))
    bundle(tmp_path / "engines" / "nano-int8", "x")
    monkeypatch.setattr(precisions, "recovered", lambda shipped: shipped.name)

    def export(source, out, name, precision, tokenizer_source, **options):
        made.append((source, precision, tokenizer_source))
        bundle(out / name, "x")

    monkeypatch.setattr(precisions, "export_bundle", export)
    assert set(precisions.bundles(wanted)) == {"shipped", *precisions.PRECISIONS}
    tokenizer = tmp_path / "shipped" / "t.json"
    assert made == [("shipped", p, tokenizer) for p in precisions.PRECISIONS if p != "int8"]


def test_a_failing_export_stops(tmp_path, monkeypatch, capsys):
    wanted = options(tmp_path)
    bundle(tmp_path / "shipped", "x")
    monkeypatch.setattr(precisions.subprocess, "run", lambda command: subprocess.CompletedProcess(command, 1))
    assert (
        precisions.main(
            ["--checkpoint", str(wanted.checkpoint), "--engines", str(wanted.engines), "--shipped", str(wanted.shipped)]
        )
        == 2
    )
    assert capsys.readouterr().err == "error: the export of nano-fp32 failed; nothing was measured\n"


def test_table_is_inserted_between_the_marks(tmp_path):
    first, last = precisions.MARKS
    file = tmp_path / "d.md"
    file.write_text(f"a\n{first}\nold\n{last}\nb\n")
    for text in ("new", "newer"):
        precisions.document(file, text)
    assert file.read_text() == f"a\n{first}\n\nnewer\n\n{last}\nb\n"
    file.write_text("no marks")
    with pytest.raises(UserError, match="marks"):
        precisions.document(file, "x")
    assert file.read_text() == "no marks"


def test_document_shows_the_committed_result():
    """docs/notes/cpu.md shows the table of benchmarks/results/nano_precisions.json, line by line."""
    found = json.loads((ROOT / "benchmarks" / "results" / "nano_precisions.json").read_text())
    assert set(found["table"]) == set(precisions.CONFIGURATIONS)
    document = (ROOT / "docs" / "notes" / "cpu.md").read_text()
    for line in precisions.table(found["table"]).splitlines():
        assert line in document, f"docs/notes/cpu.md lacks: {line} (python -m benchmarks.precisions prints the table)"
