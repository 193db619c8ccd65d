"""Peak resident memory of this process since a reset, or of another process."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path


def reset_peak() -> None:
    """Reset the peak of this process, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(process: int | None = None) -> int:
    """Peak of this process since `reset_peak`, or of another running one; 0 if the system does not report it.

    `wait4` does not serve: its figure for a child includes the memory of the parent at the fork.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{process or 'self'}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) // 1024
    return 0 if process else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
