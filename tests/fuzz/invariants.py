"""Invariants of all readers of untrusted input: no code run, nothing written, no program, no network, no hang.

Python's audit hooks report every file opened for writing, every program, socket and removal. Files that a native
library writes are found by listing the scratch folder and its parent afterwards.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.errors import UserError

CPU_SECONDS = 30.0
"""Processor time after which an input counts as a hang. Not wall time, which depends on the load of the machine."""

MAX_MESSAGE_CHARS = 2000
"""Longer messages repeat the input instead of describing it."""

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = frozenset(
    "os.system os.exec os.fork os.forkpty os.posix_spawn os.spawn os.remove os.rename os.rmdir os.mkdir os.symlink "
    "os.link os.chmod os.chown os.truncate os.putenv subprocess.Popen pty.spawn shutil.rmtree shutil.move "
    "shutil.copyfile socket.connect socket.bind socket.getaddrinfo urllib.Request webbrowser.open pickle.find_class "
    "marshal.loads".split()
)
"""Audit events that no reader may cause."""

_hook_installed = False
_violations: list[str] | None = None
"""Collects violations while an input is read; None otherwise."""


class InvariantViolation(BaseException):
    """An invariant does not hold. Not an `Exception`, so that no reader can catch it."""


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


@contextmanager
def recorded_violations() -> Iterator[list[str]]:
    """Record the forbidden audit events of the block. One block at a time per process."""
    global _hook_installed, _violations
    if not _hook_installed:
        sys.addaudithook(_audit)  # cannot be removed; does nothing outside of this context
        _hook_installed = True
    _violations = found = []
    try:
        yield found
    finally:
        _violations = None


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise InvariantViolation in the block once it has used so much processor time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise InvariantViolation(f"still busy after {seconds:g} seconds of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def check_invariants(read: Callable[[], Any], parent: Path) -> str:
    """Call `read`. Return "taken", or "refused" for a `UserError` of one line.

    `parent` holds the scratch folder `parent/inside` and nothing else. A warning that would be printed counts as a
    traceback. Raises InvariantViolation, or the error of `read`.
    """
    before = sorted(os.listdir(parent / "inside"))
    with recorded_violations() as violations, cpu_limit(CPU_SECONDS), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            read()
            outcome = "taken"
        except UserError as error:
            _check_message(str(error))
            outcome = "refused"
    if violations:
        raise InvariantViolation("; ".join(violations))
    if os.listdir(parent) != ["inside"] or sorted(os.listdir(parent / "inside")) != before:
        raise InvariantViolation("files appeared or vanished")
    return outcome


def _check_message(message: str) -> None:
    if len(message.splitlines()) != 1:
        raise InvariantViolation(f"an error of {len(message.splitlines())} lines: {message[:200]!r}")
    if len(message) > MAX_MESSAGE_CHARS:
        raise InvariantViolation(f"an error of {len(message)} characters: {message[:200]!r}")
