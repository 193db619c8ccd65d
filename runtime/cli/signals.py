"""Ctrl-C and its relatives, kept away from the moments in which a file is half written."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupt:
    """While it is entered, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, but never inside `held()`.

    `signal` is the number of the first one that came, 0 before. A second one inside `held()` is not waited for.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._held = False
        self._raised = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes inside takes effect on leaving."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.signal and not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        again, self.signal = bool(self.signal), self.signal or number
        if again or not self._held:
            self._raised = True
            raise KeyboardInterrupt
