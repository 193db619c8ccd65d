"""Defers SIGINT, SIGTERM and SIGHUP while output files are being written."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class SignalGuard:
    """A context in which SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, except inside `defer_signals()`.

    `signal` is the number of the first signal received, 0 before. A second signal is not deferred.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._deferring = False
        self._raised = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalGuard:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other thread
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def defer_signals(self) -> Iterator[None]:
        """Delay a signal received inside until the end of the block."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.signal and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_second, self.signal = bool(self.signal), self.signal or number
        if is_second or not self._deferring:
            self._raised = True
            raise KeyboardInterrupt
