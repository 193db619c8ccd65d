"""Record of files opened for writing, programs, sockets and code that a reader of untrusted input must not cause."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = frozenset(
    "os.system os.exec os.fork os.forkpty os.posix_spawn os.spawn os.remove os.rename os.rmdir os.mkdir os.symlink "
    "os.link os.chmod os.chown os.truncate os.putenv subprocess.Popen pty.spawn shutil.rmtree shutil.move "
    "shutil.copyfile socket.connect socket.bind socket.getaddrinfo urllib.Request webbrowser.open pickle.find_class "
    "marshal.loads".split()
)
"""Audit events that no reader may cause."""

_violations: list[str] | None = None
"""Collects violations while an input is read; None otherwise."""


def tripwire(*_: Any) -> None:
    """Record that it was called. The pickles of the fuzzer refer to this function."""
    if _violations is not None:
        _violations.append("code from the input was run")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _violations is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & WRITE_FLAGS and not _is_harmless(path):
            _violations.append(f"opened {path!r} for writing")
    elif event in FORBIDDEN and not _is_importing():
        _violations.append(f"{event} {arguments!r}"[:300])


def _is_harmless(path: Any) -> bool:
    """Whether it is Python's own cache of compiled modules, or not a file."""
    return isinstance(path, int) or os.fsdecode(path).endswith("/dev/null") or "__pycache__" in os.fsdecode(path)


def _is_importing() -> bool:
    """Whether a module is being imported: that renames and unmarshals its cache file."""
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


sys.addaudithook(_audit)  # cannot be removed; does nothing outside of `recorded_violations`


@contextmanager
def recorded_violations() -> Iterator[list[str]]:
    """Record the forbidden audit events of the block. One block at a time per process."""
    global _violations
    _violations = found = []
    try:
        yield found
    finally:
        _violations = None
