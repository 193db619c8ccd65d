"""Thresholds of the parity check."""

import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from export.verify.parity import compare_stage, rounded_limit

LIMIT = 1e-4


def bfloat16(values):
    """Round to bfloat16: to nearest, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("shape", [(1000,), (40, 25), (1, 10, 100)])
@pytest.mark.parametrize("error", [1e-6, 1e-5, LIMIT])
def test_differences_that_rounding_enlarges_are_allowed(shape, error):
    """Numbers within the limit may differ by more after both are rounded, but never by more than the wider one."""
    generator = np.random.default_rng(0)
    want = generator.standard_normal(shape).astype(np.float32)
    got = (want * (1 + error * generator.standard_normal(shape))).astype(np.float32)
    difference = np.linalg.norm(bfloat16(got) - bfloat16(want)) / np.linalg.norm(want)
    assert difference < rounded_limit(bfloat16(want), LIMIT)
    assert rounded_limit(want, LIMIT) == LIMIT, "only outputs whose every number is one of bfloat16"


@pytest.mark.parametrize("dtype", ["float16", "int64", "bool"])
def test_other_types_keep_their_limit(dtype):
    assert rounded_limit(np.ones(4, dtype), LIMIT) == LIMIT


def test_a_limit_above_the_step_stays():
    assert rounded_limit(bfloat16([1.0, 2.5]), 3e-2) == 3e-2
    assert rounded_limit(bfloat16(np.ones((4, 4))).T[::2], LIMIT) > LIMIT


def test_one_graph_is_in_memory_at_a_time(tmp_path):
    """Graphs of a large stage hold its weights: every variant is compared at every size before the next is loaded."""
    torch = pytest.importorskip("torch")
    from export.stage import stage, tensor

    class Graph:
        def run(self, x, y):
            runs.append(len(x))
            y[:] = 2 * x

    def load(path, spec):
        assert not any(graph() for graph in graphs), "the one before is gone"
        graphs.append(weakref.ref(graph := Graph()))
        return graph

    class Double(torch.nn.Module):
        def forward(self, x):
            return (2 * x,)

    graphs, runs = [], []
    double = stage(
        "double",
        (tensor("x", "n"),),
        (tensor("y", "n"),),
        Double(),
        lambda sizes, generator: {"x": torch.randn(sizes["n"], generator=generator)},
        {"n": (2, 9)},
        {"n": 3},
    )
    spec = replace(double.spec, files={"default": "a", "ort": "b", "trt": "a", "other": "c"})
    device = SimpleNamespace(constant=np.array, empty=np.empty, download=np.array)
    rows = compare_stage(double, spec, tmp_path, SimpleNamespace(load=load, device=device), 1e-4)
    assert [row.what for row in rows[::2]] == ["double", "double [ort]", "double [other]"]
    assert len(graphs) == 3 and runs == [3, 2] * 3 and all(row.passed for row in rows)
