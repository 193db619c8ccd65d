"""Clocks, power and temperature of the GPU while something runs, from `nvidia-smi`."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

FIELDS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
    "utilization": "utilization.gpu",
}
PERIOD = 1.0
"""Seconds between two samples."""


def query() -> str:
    """Return a line with the value of each field of the first device. Raises OSError without `nvidia-smi`."""
    command = ["nvidia-smi", "--query-gpu=" + ",".join(FIELDS.values()), "--format=csv,noheader,nounits", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except subprocess.TimeoutExpired:
        return ""


class Monitor:
    """Samples of a thread that asks once per period, with the time of each; a context manager."""

    def __init__(self, ask: Callable[[], str] = query, period: float = PERIOD) -> None:
        self.samples: list[tuple[float, Mapping[str, float]]] = []
        self._ask, self._period = ask, period
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.add(self._ask())
                self._stop.wait(self._period)
        except OSError:
            pass  # there is no `nvidia-smi`, and there are no samples

    def add(self, line: str) -> None:
        """Keep a sample; a value that is not a number is left out."""
        sample = {}
        for name, text in zip(FIELDS, line.split(","), strict=False):
            try:
                sample[name] = float(text)
            except ValueError:
                continue
        self.samples.append((time.monotonic(), sample))

    def summary(self, begin: float, end: float) -> dict[str, Any]:
        """Return least, median and greatest value of each field between two times."""
        found = [sample for at, sample in self.samples if begin <= at <= end]
        values = {name: [sample[name] for sample in found if name in sample] for name in FIELDS}
        return {n: {"min": min(v), "median": statistics.median(v), "max": max(v)} for n, v in values.items() if v}

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
