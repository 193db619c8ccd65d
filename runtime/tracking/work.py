"""Work of a session that may be done together with that of other sessions of the engine."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

from ..device.lock import DeviceLock


class Work(ABC):
    """A part of a frame that `OnlineSession.feed` gives before its outcome is needed.

    Whoever takes the steps may `run_together` then; the session runs alone what is not done at its next step.

    key          work of equal keys may run together
    since        when it was described, as `time.monotonic`
    num_objects  its size; those that run together have `max_objects` at most
    """

    def __init__(self, lock: DeviceLock, key: Hashable, num_objects: int, max_objects: int) -> None:
        self._lock, self.key, self.num_objects, self.max_objects = lock, key, num_objects, max_objects
        self.is_done = self.is_cancelled = False
        self.since = time.monotonic()

    def run_together(self, others: Sequence[Work]) -> None:
        """Run this work and others of its key, in one call of each stage. If that fails, none is done."""
        self._lock.run(self.run, others)

    def run(self, others: Sequence[Any] = ()) -> None:
        """Run this work, and others, under the lock; not those whose sessions were closed, which own no memory."""
        first, *rest = [work for work in (self, *others) if not work.is_cancelled] or [None]
        if first is not None:
            first._run(rest)
        for work in (self, *others):
            work.is_done = True

    def run_alone(self) -> None:
        """Run this work under the lock, unless it is done."""
        if not self.is_done:
            self.run()

    @abstractmethod
    def _run(self, others: Sequence[Any]) -> None:
        """Run this work and others of its key."""
