"""ONNX Runtime's scratch memory: kept by the process for the next stage, or given back after each call."""

import multiprocessing
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


def grown_by_a_call(file, keeps):
    """Megabytes that are resident after a call and were not before."""
    backend = create("ort", 1)
    backend.keeps_memory = keeps
    stage, y = backend.load(file, SPEC), np.empty(8, np.float32)
    before = resident_mb()
    stage.run(x=np.arange(8, dtype=np.float32), y=y)
    return resident_mb() - before, y


def run_both(file, queue):
    # the arena of the process grows by the second only
    queue.put([grown_by_a_call(file, keeps) for keeps in (False, True)])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_backend_that_keeps_no_memory_gives_it_back_after_a_call(tmp_path):
    """In a process of its own: others keep freed memory, or have threads that allocate."""
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "wide.onnx")
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=run_both, args=(tmp_path / "wide.onnx", queue))
    process.start()
    (freed, first), (kept, second) = queue.get()
    process.join()
    size = LARGE * 4 / 1e6
    assert freed < size / 2 < kept and np.array_equal(first, second)
