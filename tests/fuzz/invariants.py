"""What no input may do, checked while it is read: run code, write, start a program, reach a network, hang, or show a
traceback.

Python tells an audit hook about every file that is opened for writing, every program, socket and removal. What a native
library writes is seen by looking at the scratch folder and its surroundings afterwards.
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
"""An input that takes more processor time than this hangs. Not wall time: a busy machine is no fault of the input."""

LONGEST_MESSAGE = 2000
"""Characters of an error. Longer ones carry the input instead of speaking about it."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = frozenset(
    (
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "subprocess.Popen",
        "pty.spawn",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.symlink",
        "os.link",
        "os.chmod",
        "os.chown",
        "os.truncate",
        "os.putenv",
        "shutil.rmtree",
        "shutil.move",
        "shutil.copyfile",
        "socket.connect",
        "socket.bind",
        "socket.getaddrinfo",
        "urllib.Request",
        "pickle.find_class",
        "marshal.loads",
        "webbrowser.open",
    )
)

_hooked = False
_active: Watch | None = None


class Broken(BaseException):
    """A property was violated. No `except Exception` on the way may hide it."""


class Watch:
    """What was seen while an input was read: `violations` by their first line."""

    def __init__(self) -> None:
        self.violations: list[str] = []


def tripwire(*_: Any) -> None:
    """What the pickles of the fuzzer call, if anything calls it."""
    if _active is not None:
        _active.violations.append("code from the input was run")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & WRITING and not _harmless(path):
            _active.violations.append(f"opened {path!r} for writing")
    elif event in FORBIDDEN and not _importing():
        _active.violations.append(f"{event} {arguments!r}"[:300])


def _harmless(path: Any) -> bool:
    """Python's own cache of compiled modules, and what is no file."""
    return isinstance(path, int) or os.fsdecode(path).endswith("/dev/null") or "__pycache__" in os.fsdecode(path)


def _importing() -> bool:
    """Whether a module is being imported just now: that renames and unmarshals its cache file."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def watched() -> Iterator[Watch]:
    """Record what the block does. One block at a time per process."""
    global _hooked, _active
    if not _hooked:
        sys.addaudithook(_hook)  # cannot be taken away again, so it does nothing while nobody watches
        _hooked = True
    _active = watch = Watch()
    try:
        yield watch
    finally:
        _active = None


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Broken in the block when it has used so much processor time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise Broken(f"still busy after {seconds:g} seconds of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def hold(read: Callable[[], Any], around: Path) -> str:
    """Read an input. Returns "taken" or, for an error of the house in one line, "refused"; anything else raises.

    `around` is the folder that holds the scratch folder `around/inside`, and nothing else. A warning that would be
    printed counts as a traceback. Raises Broken, or what the input raised.
    """
    listing = sorted(os.listdir(around / "inside"))
    with watched() as watch, limited(CPU_SECONDS), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            read()
            outcome = "taken"
        except UserError as error:
            _one_line(str(error))
            outcome = "refused"
    if watch.violations:
        raise Broken("; ".join(watch.violations))
    if os.listdir(around) != ["inside"] or sorted(os.listdir(around / "inside")) != listing:
        raise Broken("files appeared or vanished")
    return outcome


def _one_line(message: str) -> None:
    if len(message.splitlines()) != 1:
        raise Broken(f"an error of {len(message.splitlines())} lines: {message[:200]!r}")
    if len(message) > LONGEST_MESSAGE:
        raise Broken(f"an error of {len(message)} characters: {message[:200]!r}")
