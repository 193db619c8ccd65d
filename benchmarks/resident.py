"""Peak of resident memory, of this process since a moment of one's choice or of another process."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path


def forget_peak() -> None:
    """Count this process's peak anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(process: int | None = None) -> int:
    """Of this process since `forget_peak`, or of another one that still runs; 0 if the system does not tell.

    Not what `wait4` says of a child: that starts with what its parent held when it was forked.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{process or 'self'}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) // 1024
    return 0 if process else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
