"""The command from checkpoint to bundle, on a toy SAMWISE with every part of the real one."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import runtime
from export import __main__ as command
from export import bundle
from export.networks import base
from export.networks.samwise import settings
from export.verify import __main__ as verify
from export.verify import parity, parity_clip, references
from helpers import toy_exports
from helpers.waiting import PATIENCE
from runtime.metrics import relative_error

TOKENS = [0, 17, 5, 42, 2]


@pytest.fixture(scope="module")
def model():
    return toy_exports.samwise()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "toy.pth"
    torch.save({"model": model.state_dict(), "config": dataclasses.asdict(model.config)}, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory, shared_traces):
    out = tmp_path_factory.mktemp("engines")
    assert command.main(["samwise", "--checkpoint", str(checkpoint), "--out", str(out), "--name", "toy"]) == 0
    return out


@pytest.mark.slow
def test_bundle_records_provenance_and_parity(exported, checkpoint):
    manifest = json.loads((exported / "toy" / "manifest.json").read_text())
    assert manifest["provenance"]["checkpoint"] == "toy.pth" and len(manifest["provenance"]["checkpoint_sha256"]) == 64
    assert str(checkpoint.parent) not in json.dumps(manifest)
    found = manifest["provenance"]["parity"]
    assert found["stage_error"] <= 1e-4 and found["mask_iou"] >= 0.999
    report = json.loads((exported / "toy" / "parity.json").read_text())
    assert {r["what"] for r in report["stages"]} >= {"hiera_0", "hiera_0 [ort]", "memory_attention [trt]", "neck"}
    assert len(report["clip"]) == 4 and all(r["passed"] for r in (*report["clip"], *report["stages"]))
    assert any("objects=1" in r["sizes"] for r in report["stages"]), "symbols at their lowest"


@pytest.mark.slow
def test_every_stage_is_present_with_symbols(exported):
    manifest = runtime.bundle.bundle.choose(exported).manifest
    assert set(manifest.stages) == {
        "hiera_0",
        "hiera_1",
        "hiera_2",
        "text_0",
        "text_1",
        "text_2",
        "adapter_0",
        "adapter_1",
        "adapter_2",
        "adapter_0_step",
        "adapter_1_step",
        "adapter_2_step",
        "neck",
        "text_prompt",
        "memory_attention",
        "mask_decoder",
        "conditional_memory",
        "memory_encoder",
    }
    assert manifest.stages["memory_attention"].input("memory").shape[:2] == ("objects", "slots")
    produced = {t.name: t for s in manifest.stages.values() for t in s.outputs}
    for stage in manifest.stages.values():
        for tensor in stage.inputs:
            if tensor.name in produced:
                assert tensor.dtype == produced[tensor.name].dtype, "one type on both sides of a cut"


@pytest.mark.slow
def test_two_clips_and_a_last_short_one_follow_torch(exported, model):
    """Memory over clip boundaries, conditional memory on, the verb given: the runtime against plain torch."""
    numbers = settings(model)
    frames = parity_clip.clip_frames(10, 60, 100)
    want = list(references.samwise_clip(model, numbers, frames, TOKENS, [1]))
    engine = runtime.load(exported, backend="ort")
    with engine.session([runtime.Text(tokens=TOKENS, verbs=[1])], logits=True) as session:
        got = list(session.stream(frames))
    assert engine.timings["conditional_memory"][0] > 0, "the clip is long enough to ask it"
    for row in parity.compare_clip(want, [parity_clip.ClipOutput.of(r) for r in got], "fp32"):
        assert row.passed and row.error < 1e-4, row


def test_the_reference_depends_on_memory_and_sentence(model):
    """Otherwise agreement with it would prove little."""
    numbers, frames = settings(model), parity_clip.clip_frames(4, 60, 100)

    def last_logits(tokens=TOKENS, verbs=(1,), **changes):
        changed = {"samwise": numbers["samwise"] | changes}
        return list(references.samwise_clip(model, changed, frames, tokens, verbs))[-1][1]

    full = last_logits()
    forgetful = last_logits(memory={"num_maskmem": 2, "max_obj_ptrs": 2})
    for other in (forgetful, last_logits(verbs=()), last_logits(tokens=[0, 3, 9, 2])):
        assert relative_error(other, full) > 1e-3


@pytest.mark.slow
def test_backend_check_of_a_bundle_without_its_checkpoint(exported, capsys):
    assert verify.main([str(exported / "toy"), "--backend", "ort"]) == 0
    assert "memory_attention [ort]" in capsys.readouterr().out


@pytest.mark.slow
def test_backend_check_detects_other_weights(exported, tmp_path, capsys):
    import shutil

    from runtime.bundle.bundle import file_sha256

    shutil.copytree(exported / "toy", tmp_path / "toy")
    data = tmp_path / "toy" / "graphs" / "adapter_0.data"
    changed = np.fromfile(data, np.float32) * np.float32(1.5)
    # only the variant that the backend runs gets other weights; a damaged file would be found by its sha256 already
    changed.tofile(data.with_name("other.data"))
    graph = data.with_name("adapter_0.ort.onnx")
    content = graph.read_bytes()
    assert b"adapter_0.data" in content
    graph.write_bytes(content.replace(b"adapter_0.data", b"otherrrrr.data"))
    data.with_name("other.data").rename(data.with_name("otherrrrr.data"))
    assert verify.main([str(tmp_path / "toy"), "--backend", "ort"]) == 2
    assert "sha256" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "toy" / "manifest.json").read_text())
    manifest["files"]["graphs/adapter_0.ort.onnx"] = file_sha256(graph)
    (tmp_path / "toy" / "manifest.json").write_text(json.dumps(manifest))
    assert verify.main([str(tmp_path / "toy"), "--backend", "ort"]) == 1
    assert "adapter_0 [ort] misses its threshold" in capsys.readouterr().err


@pytest.mark.slow
def test_half_bundle_follows_the_clip(model, tmp_path, shared_traces):
    bundle.export_bundle(base.describe("samwise", model), tmp_path, "toy", precision="fp16", variants=())
    found = runtime.bundle.bundle.choose(tmp_path)
    manifest = found.manifest
    assert manifest.precision == "fp16" and manifest.stages["memory_attention"].input("memory").dtype == "float16"
    assert manifest.stages["mask_decoder"].output("low_res_logits").dtype == "float32"
    assert {s.precision for s in manifest.stages.values()} <= {"fp16", "fp16-matmul", "fp32"}
    assert all(set(s.files) == {"default"} for s in manifest.stages.values())
    report = json.loads((found.folder / "parity.json").read_text())
    assert min(c["iou"] for c in report["clip"]) >= 0.97
    assert any("[rounded]" in r["what"] for r in report["stages"])


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "export", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1].parent,
        timeout=PATIENCE,
        **options,
    )


@pytest.mark.parametrize(
    "content, message", [(None, "no such file"), (b"", "not readable"), (b"PK\x03\x04 truncated", "not readable")]
)
def test_bad_checkpoint_is_a_one_line_error_with_exit_code_2(tmp_path, content, message):
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    done = run("samwise", "--checkpoint", path, "--out", tmp_path / "engines")
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "engines").exists()


def test_checkpoint_of_another_network(tmp_path, capsys):
    torch.save({"model": {"conv.weight": torch.zeros(3)}}, tmp_path / "x.pth")
    assert command.main(["samwise", "--checkpoint", str(tmp_path / "x.pth"), "--out", str(tmp_path / "e")]) == 2
    assert "not a SAMWISE checkpoint" in capsys.readouterr().err


def test_a_bad_tokenizer_stops_the_export_at_once(checkpoint, tmp_path, capsys):
    assert (
        command.main(
            [
                "samwise",
                "--checkpoint",
                str(checkpoint),
                "--out",
                str(tmp_path / "engines"),
                "--tokenizer",
                str(tmp_path),
            ]
        )
        == 2
    )
    assert "neither" in capsys.readouterr().err and not os.listdir(tmp_path / "engines")


def test_bad_threads(checkpoint, tmp_path, capsys):
    assert command.main(["samwise", "--checkpoint", str(checkpoint), "--out", str(tmp_path), "--threads", "0"]) == 2
    assert "--threads" in capsys.readouterr().err


def test_unknown_network_and_missing_checkpoint_are_usage_errors():
    for arguments in (["sam9"], ["samwise"], []):
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert stop.value.code == 2


def test_full_disk_is_a_one_line_error(checkpoint, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "graphs"))

    monkeypatch.setattr(bundle.ExportJob, "stages", full)
    assert command.main(["samwise", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "engines")]) == 1
    assert "No space left" in capsys.readouterr().err and not os.listdir(tmp_path / "engines")


@pytest.mark.parametrize(
    "width, blocks, name",
    [
        (96, (1, 2, 7, 2), "tiny"),
        (112, (2, 3, 16, 3), "base_plus"),
        (144, (2, 6, 36, 4), "large"),
        (8, (1,), "width_8"),
    ],
)
def test_variant_names(model, width, blocks, name):
    assert base.trunk_name(dataclasses.replace(model.config.sam.hiera, width=width, blocks=blocks)) == name
