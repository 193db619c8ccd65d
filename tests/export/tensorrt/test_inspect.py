"""Output of an engine's inspector, and the command on fake libraries."""

import json
import sys

import pytest

from export.tensorrt import build, inspect
from helpers import fake_tensorrt
from helpers import toy_samwise as toy
from helpers.fake_cuda import FakeDriver
from helpers.fake_tensorrt import FakeLibrary
from runtime.backends.ort import OrtBackend
from runtime.backends.trt import TrtBackend
from runtime.bundle.bundle import choose
from runtime.device.cuda import Cuda
from runtime.errors import UserError


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    return TrtBackend(device=Cuda(FakeDriver()))


@pytest.fixture
def bundle(tmp_path):
    bundle = choose(toy.build(tmp_path / "toy"))
    build.build_bundle(bundle, FakeLibrary("tensorrt", fake_tensorrt.__version__), [89], report=lambda line: None)
    return choose(bundle.folder)


def test_layers_types_and_tactics_of_every_stage(bundle, backend, tmp_path):
    lines = []
    found = inspect.inspect_bundle(bundle, backend, out=tmp_path / "out", full=True, report=lines.append)
    assert list(found) == list(bundle.manifest.stages)
    fused, plain = found["neck"]
    assert (fused.type, fused.precision, fused.tactic) == ("kgen", "float16", "__myl_0x1")
    assert (plain.type, plain.precision, plain.tactic) == ("gemm", "float32", "0x2")
    assert plain.inputs == ("float16", "float16")
    assert "2 layers" in lines[0] and "float16 1" in lines[0] and "kgen 1" in lines[0] and "__myl_0x1" in lines[1]
    saved = json.loads((tmp_path / "out" / "neck.layers.json").read_text())
    assert "embedding" in saved["Bindings"] and len(saved["Layers"]) == 2


def test_engine_without_details_is_reported():
    found = inspect.layers('{"Layers": ["a", "b"], "Bindings": []}')
    assert [layer.name for layer in found] == ["a", "b"] and found[0].precision == "unknown"
    assert "names only: build it again" in inspect.summary("neck", found)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Half", "float16"),
        ("Row major linear FP32", "float32"),
        ("N/A due to x", "unknown"),
        ("Two wide channel vectorized row major Int8 format", "int8"),
        ("Row major Int8 input, computes in BF16", "bfloat16"),
    ],
)
def test_names_of_types(text, expected):
    assert inspect.datatype({"Format/Datatype": text}) == expected
    assert inspect.datatype("a name") == "unknown"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": 3'])
def test_unknown_inspector_output_is_a_one_line_error(text):
    with pytest.raises(UserError, match="not understood"):
        inspect.layers(text)


def test_files_that_cannot_be_inspected(bundle, backend, capsys, monkeypatch):
    with pytest.raises(UserError, match="'ort' has no engines"):
        inspect.inspect_bundle(bundle, OrtBackend())
    monkeypatch.setattr(inspect, "create", lambda name: backend)
    assert inspect.main([str(bundle.folder), "--backend", "tensorrt", "--stage", "nose"]) == 2
    assert "no stage 'nose'" in capsys.readouterr().err
    assert inspect.main([str(bundle.folder), "--backend", "tensorrt", "--stage", "neck"]) == 0
    assert capsys.readouterr().out.count("\n") == 1
