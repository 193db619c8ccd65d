"""A short endurance run on the toy bundle, and that its verdict can fail."""

from dataclasses import replace

import pytest

import runtime
from benchmarks import soak


def test_nothing_grows(toy):
    with runtime.load(toy) as engine:
        samples = list(soak.run(engine, 2000, 50, report=lambda line: None))
        assert engine.networks["samwise"].pool.free == engine.networks["samwise"].pool.capacity
    assert len(samples) == 40
    assert soak.verdict(samples) == []


def test_growth_is_seen():
    flat = [soak.Sample(i, 100.0, 9, 2, 1.0) for i in range(20)]
    assert soak.verdict(flat) == []
    for change in ({"rss_mb": 100.0 + 2 * soak.GROWTH_MB}, {"files": 10}, {"threads": 3}):
        assert len(soak.verdict([*flat, replace(flat[-1], **change)])) == 1


def test_an_error_that_does_not_come_is_seen():
    with pytest.raises(AssertionError, match="no VideoError"):
        soak.expect(runtime.VideoError, lambda: None)
