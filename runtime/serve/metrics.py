"""Metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..scheduler import Delivery, SchedulerGroup

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one server."""

    def __init__(self, scheduler: SchedulerGroup, streams: Collection[Any]) -> None:
        self._registry, self._scheduler = CollectorRegistry(), scheduler
        count = Gauge("samwise_streams", "Open streams", registry=self._registry)
        count.set_function(lambda: len(streams))
        objects = Gauge("samwise_objects", "Objects in the last results of the streams", registry=self._registry)
        objects.set_function(lambda: sum(stream.num_objects for stream in list(streams)))
        self.frames = Counter("samwise_frames", "Frames", ["outcome"], registry=self._registry)
        self.seconds = Histogram(
            "samwise_frame_seconds", "Time of a frame", ["part"], buckets=_SECONDS, registry=self._registry
        )
        self.refused = Counter("samwise_refused", "Refusals", ["reason"], registry=self._registry)
        self._registry.register(self)

    def count(self, delivery: Delivery) -> None:
        """Count what became of a frame."""
        self.frames.labels(delivery.outcome.value).inc()
        if delivery.result is not None:
            self.seconds.labels("queue").observe(delivery.waited)
            self.seconds.labels("compute").observe(delivery.computed)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the engines, as Prometheus' library asks."""
        stages = CounterMetricFamily("samwise_stage_seconds", "Time of a stage", labels=["stage"])
        engines = [scheduler.engine for scheduler in self._scheduler.schedulers]
        timings = [engine.timings for engine in engines]
        for stage in timings[0]:
            stages.add_metric([stage], sum(one[stage][1] for one in timings))
        yield stages
        rows = GaugeMetricFamily(
            "samwise_pool_rows", "Objects in the memory pools, and room for more", labels=["state"]
        )
        for state, numbers in zip(
            ("used", "free"), zip(*(e.networks.memory_rows for e in engines), strict=True), strict=True
        ):
            rows.add_metric([state], sum(numbers))
        yield rows
        sizes = sorted(self._scheduler.batch_sizes.items())
        counts = [(str(limit), float(sum(n for size, n in sizes if size <= limit))) for limit in (1, 2, 4, 8)]
        calls = [*counts, ("+Inf", float(sum(n for _, n in sizes)))]
        batches = HistogramMetricFamily("samwise_batch_size", "Streams whose frames are decoded in one call")
        batches.add_metric([], calls, sum(size * n for size, n in sizes))
        yield batches

    def text(self) -> bytes:
        """Return all in Prometheus' format."""
        return generate_latest(self._registry)
