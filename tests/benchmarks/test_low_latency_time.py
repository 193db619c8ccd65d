"""Benchmark of a frame's time with low latency, on the toy bundle; the committed measurement has its fields."""

import json

import runtime
from benchmarks import low_latency
from benchmarks.report import RESULTS


def test_fields_of_the_measurement(toy):
    with runtime.load(toy, backend="ort", threads=1) as engine:
        row = low_latency.measure(engine, 2, 2)
    assert row["ratio"] > 0 and row["prompts"] == 2
    committed = json.loads((RESULTS / "low_latency-nano-ort.json").read_text())
    assert [set(found) for found in committed["rows"]] == [set(row)] * 2
