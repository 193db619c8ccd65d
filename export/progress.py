"""Progress of an export: what is being done and for how long."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tqdm import tqdm


@dataclass(slots=True)
class Progress:
    """A line on a terminal that counts seconds; elsewhere `report` gets a line when a task is done."""

    report: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of each kind of task."""

    @contextmanager
    def task(self, kind: str, what: str) -> Iterator[None]:
        """Show `what` while the block runs, and add its time to that of `kind`."""
        began, terminal = time.perf_counter(), sys.stderr.isatty()
        with _counting(f"{what}: {kind}", terminal):
            yield
        took = time.perf_counter() - began
        self.seconds[kind] = self.seconds.get(kind, 0.0) + took
        if not terminal:
            self.report(f"{what}: {kind}, {took:.1f} s")


@contextmanager
def _counting(text: str, terminal: bool) -> Iterator[None]:
    """Show a line with the elapsed time, drawn every second."""
    done = threading.Event()
    with tqdm(desc=text, bar_format="{desc} {elapsed}", leave=False, file=sys.stderr, disable=not terminal) as line:

        def draw() -> None:
            while not done.wait(1):
                line.refresh()

        if terminal:
            threading.Thread(target=draw, daemon=True).start()
        try:
            yield
        finally:
            done.set()
