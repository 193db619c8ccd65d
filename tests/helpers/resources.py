"""Memory, open files and threads of this process."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path


def resident_mb() -> float:
    """Resident memory in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def files() -> int:
    """Number of open handles."""
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """Number of threads, those of libraries included."""
    return len(os.listdir("/proc/self/task"))


def decoder_threads() -> list[threading.Thread]:
    """Threads of this process that decode a video."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("frames of")]


def wait_for_threads() -> None:
    """Wait until the decoder threads of the last video have ended; give up after five seconds in which none ends."""
    count, since = len(decoder_threads()), time.monotonic()
    while count and time.monotonic() < since + 5:
        time.sleep(0.005)
        if len(decoder_threads()) != count:
            count, since = len(decoder_threads()), time.monotonic()
