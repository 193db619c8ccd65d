"""Waiting for what other threads and processes do, and time that does not count what a busy machine takes away."""

import contextlib
import os
import time

PATIENCE = 120.0
"""Seconds after which what a test waits for does not come: a busy machine may need most of them."""


def wait_until(holds, seconds=PATIENCE):
    """Wait until a condition holds; fail if it does not."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.005)


class Stopwatch:
    """Seconds since it was made, without those in which threads of this process were ready and had no core.

    For "it is quick" of a server in this process: other processes may take the cores.
    """

    def __init__(self):
        self._start, self._waited = time.monotonic(), _seconds_without_core()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start - max(0.0, _seconds_without_core() - self._waited)


def _seconds_without_core() -> float:
    """Sum over the threads; 0 where the system does not tell."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                with open(f"/proc/self/task/{thread}/schedstat") as file:
                    total += int(file.read().split()[1])
    return total / 1e9
