"""Threads of the host that run frames side by side, each on one core."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path

from ..bundle.manifest import StageSpec

MAX_WORKERS = 4
"""Most frames side by side: each takes scratch space of its own."""

SMALL_TENSOR = 1 << 18
"""Elements of the largest tensor of a small frame or object: a megabyte of float32, the cache of a core."""

MAX_OBJECTS_BESIDE = 8
"""Most objects that are decoded on one core, beside frames that other cores encode."""


CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container: microseconds of processor time, or "max", and of the period in which it may use them."""


def num_cores() -> int:
    """Return the number of cores that this process may use: its affinity, and the quota of its container."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on Windows and macOS
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = map(int, CPU_QUOTA.read_text().split())
    except (OSError, ValueError):  # another system, or no quota
        return cores
    return max(1, min(cores, -(-quota // period)))


def limited_cores() -> int | None:
    """Return `num_cores` where the machine has more: a library that counts all of them starts too many threads."""
    return cores if (cores := num_cores()) < (os.cpu_count() or 1) else None


def count_cores() -> int:
    """Return the number of cores that this process may use, at most `MAX_WORKERS`."""
    return min(MAX_WORKERS, num_cores())


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
            # one that has not begun, because its thread works ahead, is not waited for
            errors = [other.exception() for other in others if not other.cancel()]
        for error in errors:
            if error is not None:
                raise error

    def _run_waiting(self, waiting: deque[Callable[[], None]]) -> None:
        with self.beside():
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

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Let the work of this thread take one core, as others run at the same time."""
        before, self._state.is_beside = self.is_beside, True
        try:
            yield
        finally:
            self._state.is_beside = before

    def submit(self, work: Callable[[], None]) -> None:
        """Let another thread run `work` when those given before have begun."""
        self._threads().submit(work)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._process != os.getpid():  # threads do not survive a fork
            self._pool, self._process = ThreadPoolExecutor(self.count - 1, "samwise-worker"), os.getpid()
        return self._pool


class WorkAhead:
    """Work that is needed later, in this order; the other threads begin with it while the caller does something else.

    Unlike that of `Workers.run_all`, it may outlast the call in which it was given.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._works: deque[_Begun] = deque()

    def __len__(self) -> int:
        return len(self._works)

    def start(self, work: Callable[[], None]) -> None:
        """Add work at the end."""
        self._works.append(begun := _Begun(self._workers, work))
        self._workers.submit(begun.run)

    def finish_first(self) -> None:
        """Run the first work, or, while another thread does, those behind it; raise its error."""
        first = self._works[0]
        for work in list(self._works):
            if first.is_done:
                break
            work.run()
        self._works.popleft().wait()

    def drop(self) -> None:
        """Drop all works, and wait for those that run."""
        while self._works:
            self._works.pop().cancel()


class _Begun:
    """One work, which the thread that comes first runs."""

    def __init__(self, workers: Workers, work: Callable[[], None]) -> None:
        self._workers, self._work, self._process = workers, work, os.getpid()
        self._claim, self._done = threading.Lock(), threading.Event()
        self._error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self._done.is_set()

    def run(self) -> None:
        """Run it, unless another thread has begun. An interrupt of the caller is raised at once."""
        if self._process != os.getpid():  # the other thread does not survive a fork
            self._claim, self._process = threading.Lock(), os.getpid()
        if not self._claim.acquire(blocking=False):
            return
        try:
            with self._workers.beside():
                self._work()
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._done.set()

    def wait(self) -> None:
        """Wait until it is done; raise its error."""
        self._done.wait()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Keep it from beginning, or wait for its end."""
        if not self._claim.acquire(blocking=False) and self._process == os.getpid():
            self._done.wait()
