"""The graphs that `shared_traces` gives are those that the exporter would make."""

import functools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from export import onnx
from export.networks.samwise import stages
from helpers import toy_exports, trace_cache


def stage(name):
    return next(s for s in stages(toy_exports.samwise()) if s.name == name)


def fingerprint(stage, variant="default"):
    return trace_cache.fingerprint(stage, variant, onnx.OPSET)


def test_graph_from_the_cache_has_the_same_bytes(tmp_path):
    trace_cache.trace(tmp_path, stage("text_prompt"))
    written = {}
    for source, trace in (("cache", functools.partial(trace_cache.trace, tmp_path)), ("exporter", onnx.trace)):
        (tmp_path / source).mkdir()
        onnx.save({"default": trace(stage("text_prompt"))}, tmp_path / source, "text_prompt")
        written[source] = {file.name: file.read_bytes() for file in (tmp_path / source).iterdir()}
    assert written["cache"] == written["exporter"]


def test_everything_that_decides_a_graph_is_in_the_key():
    one = stage("memory_attention")
    assert fingerprint(one) == fingerprint(stage("memory_attention"))
    keys = {fingerprint(one), fingerprint(one, "ort"), fingerprint(one, "trt"), fingerprint(stage("neck"))}
    weights = next(one.module.parameters())
    with torch.no_grad():
        weights.view(-1)[0] += 1
    keys.add(fingerprint(one))
    one.module.other = 1
    keys.add(fingerprint(one))
    assert len(keys) == 6
