"""Invariants of all readers of untrusted input: no code run, nothing written, no program, no network, no hang.

Python's audit hooks report every file opened for writing, every program, socket and removal. Files that a native
library writes are found by listing the scratch folder and its parent afterwards.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.audit import recorded_violations
from runtime.errors import MAX_MESSAGE_CHARS, UserError

CPU_SECONDS = 30.0
"""Processor time after which an input counts as a hang. Not wall time, which depends on the load of the machine."""


class InvariantViolation(BaseException):
    """An invariant does not hold. Not an `Exception`, so that no reader can catch it."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise InvariantViolation in the block once it has used so much processor time. Main thread only."""

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
            message, outcome = str(error), "refused"
            if len(message.splitlines()) != 1 or len(message) > 2 * MAX_MESSAGE_CHARS:
                raise InvariantViolation(
                    f"an error of {len(message.splitlines())} lines, {len(message)} characters: {message[:200]!r}"
                ) from None
    if violations:
        raise InvariantViolation("; ".join(violations))
    if os.listdir(parent) != ["inside"] or sorted(os.listdir(parent / "inside")) != before:
        raise InvariantViolation("files appeared or vanished")
    return outcome
