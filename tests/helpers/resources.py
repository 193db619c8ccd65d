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


def wait_for_threads() -> None:
    """Wait until the decoder threads of the last video have ended; give up after half a second in which none ends."""
    count, since = threading.active_count(), time.monotonic()
    while count > 1 and time.monotonic() < since + 0.5:
        time.sleep(0.01)
        if threading.active_count() != count:
            count, since = threading.active_count(), time.monotonic()
