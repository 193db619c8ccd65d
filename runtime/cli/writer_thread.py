"""A thread that writes one frame while the next one is computed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

QUEUE_FRAMES = 2
"""Frames that may wait to be written. A longer queue would only delay the effect of a slow disk or encoder."""


class WriterThread:
    """Calls `write(*item)` for every item, in order, in one thread.

    The first exception of `write` ends it: the next `put`, or `close`, raises it, and later items are dropped.
    """

    def __init__(self, write: Callable[..., None], name: str = "writer") -> None:
        self._write = write
        self._queue: queue.Queue[tuple[Any, ...] | None] = queue.Queue(QUEUE_FRAMES)
        self._error: BaseException | None = None
        self._closed = False
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    def put(self, *item: Any) -> None:
        """Queue one item; block while the queue is full."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def close(self) -> None:
        """Write the queued items and end the thread. May be called twice."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue
            start = time.perf_counter()
            try:
                self._write(*item)
            except BaseException as error:  # raised by `put` or `close`
                self._error = error
            self.seconds += time.perf_counter() - start
