"""Threads of the host that run frames side by side, each on one core."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod

from ..bundle.manifest import StageSpec

MAX_WORKERS = 4
"""Most frames side by side: each takes scratch space of its own."""

SMALL_TENSOR = 1 << 18
"""Elements of the largest tensor of a small frame or object: a megabyte of float32, the cache of a core."""


def count_cores() -> int:
    """Return the number of cores that this process may use, at most `MAX_WORKERS`."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on Windows and macOS
    return min(MAX_WORKERS, len(affinity(0)) if affinity else os.cpu_count() or 1)


def has_small_frames(spec: StageSpec) -> bool:
    """Tell whether a stage never mixes frames, and one of them is too small to be shared out to several threads."""
    return spec.symbols == {"frames"} and _is_small(spec)


def has_small_objects(spec: StageSpec) -> bool:
    """Tell whether a stage computes objects too small to be shared out to several threads. Attention gains by them."""
    return "objects" in spec.symbols and not spec.attention and _is_small(spec)


def _is_small(spec: StageSpec) -> bool:
    one = dict.fromkeys(spec.symbols, 1)
    return all(prod(tensor.resolve(one)) <= SMALL_TENSOR for tensor in (*spec.inputs, *spec.outputs))


class Workers:
    """`count` threads, the caller's among them. With one, work runs in order."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._state = threading.local()
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0

    @property
    def is_beside(self) -> bool:
        """Whether the work of this thread is one of several that run at the same time: then it takes one core."""
        return getattr(self._state, "is_beside", False)

    def frames_of(self, spec: StageSpec) -> int:
        """Return how many frames of a stage should run side by side."""
        return self.count if has_small_frames(spec) else 1

    def run_all(self, works: Sequence[Callable[[], None]]) -> None:
        """Run all of `works`, in any order, and wait for them; also where one fails or the caller is interrupted."""
        if self.count == 1 or len(works) == 1:
            for work in works:
                work()
            return
        waiting = deque(works)
        pool = self._threads()
        others = [pool.submit(self._run_waiting, waiting) for _ in range(min(self.count, len(works)) - 1)]
        try:
            self._run_waiting(waiting)
        finally:
            waiting.clear()
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error

    def _run_waiting(self, waiting: deque[Callable[[], None]]) -> None:
        self._state.is_beside = True
        try:
            while waiting:
                try:
                    work = waiting.popleft()
                except IndexError:  # another thread took the last one
                    return
                work()
        except BaseException:
            waiting.clear()
            raise
        finally:
            self._state.is_beside = False

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._process != os.getpid():  # threads do not survive a fork
            self._pool, self._process = ThreadPoolExecutor(self.count - 1, "samwise-worker"), os.getpid()
        return self._pool
