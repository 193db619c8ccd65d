"""ONNX Runtime's scratch memory: kept by the process for the next stage, or given back after each call."""

import sys

import numpy as np
import onnx
import onnx.parser
import pytest

from helpers.resources import resident_mb
from runtime.backends import create
from runtime.bundle.manifest import StageSpec, TensorSpec

LARGE = 16 << 20
GRAPH = f"""<ir_version: 10, opset_import: ["" : 20]>
wide (float[N] x) => (float[N] y) {{
  zero = Constant<value = int64[1] {{0}}>()
  shape = Constant<value = int64[2] {{{LARGE // 8}, 8}}>()
  many = Expand(x, shape)
  squares = Mul(many, many)
  y = ReduceMean<keepdims=0>(squares, zero)
}}"""
TENSORS = TensorSpec("x", "float32", ("N",)), TensorSpec("y", "float32", ("N",))
SPEC = StageSpec("wide", TENSORS[:1], TENSORS[1:], files={"default": "wide.onnx"})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_backend_that_keeps_no_memory_gives_it_back_after_a_call(tmp_path):
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "wide.onnx")
    x, outputs = np.arange(8, dtype=np.float32), []
    for keeps in (False, True):  # the arena of the process grows by the second only
        backend = create("ort", 1)
        backend.keeps_memory = keeps
        stage, y = backend.load(tmp_path / "wide.onnx", SPEC), np.empty(8, np.float32)
        before = resident_mb()
        stage.run(x=x, y=y)
        outputs.append(y)
        assert keeps or resident_mb() - before < LARGE * 4 / 1e6 / 2
    assert np.array_equal(outputs[0], outputs[1])
