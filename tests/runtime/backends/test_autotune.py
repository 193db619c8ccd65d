"""Tests of `runtime.autotune`: `auto` takes OpenVINO only with a saved result that favours it."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

import runtime
from runtime import backends
from runtime.backends import autotune
from runtime.bundle.bundle import choose
from runtime.cli import autotune as command


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "samwise-runtime"


def result(bundle, **changes):
    """A result in favour of OpenVINO."""
    manifest = choose(bundle).manifest
    good = autotune.TuningResult(
        "openvino",
        "toy",
        autotune.fingerprint(manifest),
        autotune.versions(*backends.NEEDS_AUTOTUNE["openvino"]),
        autotune.processor(),
        1,
        True,
        1e-6,
        1.0,
        0.10,
        0.05,
        0.5,
    )
    return dataclasses.replace(good, **changes)


def chosen(bundle):
    with runtime.load(bundle, threads=1) as engine:
        return engine.backend.name


def test_auto_takes_openvino_with_a_favourable_result(toy):
    assert chosen(toy) == "ort", "no result is saved yet"
    autotune.save(result(toy))
    assert chosen(toy) == "openvino"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"exact": False}, "not exact"),
        ({"frame_seconds": 0.099}, "not faster"),
        ({"frame_seconds": 0.2}, "not faster"),
        ({"extra_start_seconds": 13.0}, "starts 13.0 s later"),
        ({"versions": "openvino 2020.1, onnxruntime 1.0"}, "not tuned"),
        ({"fingerprint": "0" * 64}, "not tuned"),
        ({"processor": "abacus, 10 cores"}, "not tuned"),
        ({"backend": "openvino-bf16"}, "not tuned"),
    ],
)
def test_auto_rejects_openvino_and_logs_one_reason(toy, changes, words, caplog):
    autotune.save(result(toy, **changes))
    with caplog.at_level(logging.INFO, "runtime"):
        assert chosen(toy) == "ort"
    lines = [r.getMessage() for r in caplog.records if "openvino" in r.getMessage()]
    assert len(lines) == 1 and words in lines[0] and "\n" not in lines[0]


def test_result_of_other_files_is_ignored(toy):
    good = result(toy)
    path = autotune.save(good)
    path.write_text(json.dumps(dataclasses.asdict(good) | {"fingerprint": "0" * 64}))
    assert chosen(toy) == "ort"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"null", b"{}", b"7", b"[" * 100_000, b'{"backend": "openvino"}']
)
def test_damaged_result_is_ignored(toy, content):
    autotune.save(result(toy)).write_bytes(content)
    assert chosen(toy) == "ort"


@pytest.mark.parametrize(
    "field", ["exact", "error", "iou", "frame_seconds", "reference_frame_seconds", "extra_start_seconds"]
)
@pytest.mark.parametrize("value", ["yes", None, [1], {}, float("nan")])
def test_result_with_wrong_types_is_ignored(toy, field, value):
    good = result(toy)
    autotune.save(good).write_text(json.dumps(dataclasses.asdict(good) | {field: value}))
    assert autotune.find("openvino", choose(toy).manifest) is None


def test_library_that_is_not_installed(toy, monkeypatch, caplog):
    autotune.save(result(toy))
    monkeypatch.setattr(autotune, "installed", lambda module: False)
    with caplog.at_level(logging.INFO, "runtime"):
        assert chosen(toy) == "ort"
    assert any("not installed" in r.getMessage() for r in caplog.records)


def test_backend_by_name_needs_no_result(toy):
    with runtime.load(toy, backend="openvino", threads=1) as engine:
        assert engine.backend.name == "openvino"
    assert backends.create("auto", 1).name == "ort", "without a bundle there is no result to look up"


def test_cache_folder_that_is_not_writable(toy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(runtime.InternalError, match="XDG_CACHE_HOME") as error:
        autotune.save(result(toy))
    assert "\n" not in str(error.value)
    assert chosen(toy) == "ort"


@pytest.mark.parametrize("name", ["toy", "toy_sam2_bundle"])
def test_tuning_reaches_every_stage_and_finds_it_exact(name, request):
    bundle = choose(request.getfixturevalue(name))
    found = command.tune(bundle, "openvino", threads=1, repeats=1)
    assert found.unreached == () and {r.stage for r in found.stages} == set(bundle.manifest.stages)
    assert found.result.exact and found.result.error < 1e-4 and found.result.iou > 0.999
    assert all(r.calls > 0 and r.seconds > 0 and r.reference_seconds > 0 for r in found.stages)
    autotune.save(found.result)
    assert autotune.find("openvino", bundle.manifest) == found.result


def test_tuning_reaches_every_stage_of_concepts():
    """Words and an exemplar, clicks and a mask, in a bundle of half precision."""
    bundle = choose(Path(__file__).parents[3] / "engines" / "nano-concepts")
    found = command.tune(bundle, "openvino", threads=1, repeats=1)
    assert found.unreached == () and {r.stage for r in found.stages} == set(bundle.manifest.stages)
    assert found.result.exact and found.result.error < 5e-3 and found.result.iou > 0.99


def test_tuning_detects_a_stage_that_is_not_exact(toy, monkeypatch):
    from runtime.backends.ov import OpenVinoStage

    plain = OpenVinoStage.run

    def off(self, **arrays):
        plain(self, **arrays)
        if self.spec.name == "neck":
            arrays["embedding"] *= 1.01

    monkeypatch.setattr(OpenVinoStage, "run", off)
    found = command.tune(choose(toy), "openvino", threads=1, repeats=1)
    assert not found.result.exact and "not exact" in found.result.rejection_reason()
    assert max(found.stages, key=lambda r: r.error).stage == "neck"


def test_stage_that_the_clip_does_not_reach_is_not_exact(toy):
    found = command.tune(choose(toy), "openvino", threads=1, repeats=1, frames=1)
    assert "memory_attention" in found.unreached and not found.result.exact
    assert "not reached" in command.table(found)


def test_the_command(toy, capsys, cache):
    assert command.main(["--engine", str(toy), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "memory_attention" in out and "auto will" in out and len(list(cache.glob("openvino-*.json"))) == 1
    assert command.main(["--engine", str(toy), "--threads", "1", "--cpu-seconds", "--frames", "9"]) == 0
    assert "not saved" in capsys.readouterr().out and len(list(cache.glob("openvino-*.json"))) == 1
    assert command.main(["--engine", str(toy), "--frames", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: --frames")
    assert command.main(["--engine", str(toy / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert command.main(["--engine", str(toy), "--backend", "abacus"]) == 2


def test_memory_is_rounded_to_bfloat16_as_the_graph_says(tmp_path):
    """float32 -> bfloat16 -> float32: OpenVINO would drop the pair."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from runtime.backends.ov import OpenVinoBackend
    from runtime.bundle.manifest import StageSpec, TensorSpec

    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["narrow"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["wide"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    graph = helper.make_graph(nodes, "rounding", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "r.onnx")
    spec = StageSpec("rounding", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 30
    y = np.zeros_like(x)
    OpenVinoBackend(threads=1).load(tmp_path / "r.onnx", spec).run(x=x, y=y)
    bits = x.view(np.uint32).astype(np.uint64)
    want = (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(y, want)
    assert not np.array_equal(y, x)
