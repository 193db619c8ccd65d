"""Work that runs beside the main thread: the files of one frame are written while the next frame is computed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

DEPTH = 2
"""Frames that may wait to be written. More would only hide for how long the disk or the encoder is too slow."""


class Background:
    """Calls `work(*item)` for every item that is put in, in order, in one thread.

    The first exception of `work` ends it: it is raised by the next `put` or by `close`, and later items are dropped.
    """

    def __init__(self, work: Callable[..., None], depth: int = DEPTH) -> None:
        self._work, self._items = work, queue.Queue(depth)
        self._error: BaseException | None = None
        self._closed = False
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._loop, daemon=True, name="results to disk")
        self._thread.start()

    def put(self, *item: Any) -> None:
        """Hand over one item; waits while `depth` of them wait already."""
        if self._error is not None:
            raise self._error
        self._items.put(item)

    def close(self) -> None:
        """Finish what was put in, then end the thread. May be called twice."""
        if not self._closed:
            self._closed = True
            self._items.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _loop(self) -> None:
        while (item := self._items.get()) is not None:
            if self._error is not None:
                continue
            start = time.perf_counter()
            try:
                self._work(*item)
            except BaseException as error:  # nobody to raise it to here
                self._error = error
            self.seconds += time.perf_counter() - start
