"""Clocks, power and temperature of the GPU while something runs, from `nvidia-smi`."""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

FIELDS = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
    "utilization": "utilization.gpu",
}
PERIOD_MS = 500


class Monitor:
    """Samples with the time at which each was read. Without `nvidia-smi` there are none."""

    def __init__(self, process: subprocess.Popen[str] | None = None) -> None:
        self.samples: list[tuple[float, Mapping[str, float]]] = []
        self._process = process
        if process is not None and process.stdout is not None:
            threading.Thread(target=self.read, args=(process.stdout,), daemon=True).start()

    @classmethod
    def of_the_device(cls) -> Monitor:
        """Start `nvidia-smi`, which prints a line per period until `close`."""
        query = "--query-gpu=" + ",".join(FIELDS.values())
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits", "--id=0", f"--loop-ms={PERIOD_MS}"]
        try:
            return cls(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        except OSError:
            return cls()

    def read(self, lines: Iterable[str]) -> None:
        """Keep the samples of these lines; a value that is not a number is left out."""
        for line in lines:
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
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
