"""Lock of a device: one call at a time uses it, of all threads and of one."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, TypeVar
from weakref import WeakSet

from ..errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


WITHIN = (
    "the engine is in the middle of another call of this thread; a signal handler, a callback or an object that is "
    "read meanwhile cannot call it: set a flag there, and call the engine after it"
)


class DeviceLock:
    """Lets one call at a time use a device, its arrays, and stages on it. Calls of other threads wait.

    A call within a call is refused: a signal handler, a callback or a finalizer may run anywhere in a call, where
    buffers hold half of a frame. So is every call in a process that was forked while another thread was in a call.
    """

    def __init__(
        self, prepare: Callable[[], None] = lambda: None, is_within: Callable[[], bool] = lambda: False
    ) -> None:
        """`prepare` is called in the thread of every call, before it; `is_within` tells whether this thread works for a
        call that another thread is in, which waits for it."""
        self._prepare, self._is_within, self._lock = prepare, is_within, threading.RLock()
        self._owner: int | None = None
        """The thread that is in a call."""
        self._postponed: deque[Callable[[], None]] = deque()
        self._forked = False
        _locks.add(self)

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `call` when no other call runs. Raises UserError within a call, and after a fork during one."""
        if self._forked:
            raise UserError(
                "this process was forked while another thread computed on the engine, which stopped midway here; load "
                "the engine again in this process, or start processes with multiprocessing's method 'spawn'"
            )
        if self._is_within():
            raise UserError(WITHIN)
        # an interrupt raises between two instructions: the interpreter's own lock in a `with` is released whatever
        # happens, one that is taken by a function in Python is not
        with self._lock:
            if self._owner is not None:
                raise UserError(WITHIN)
            try:
                self._owner = threading.get_ident()
                self._prepare()
                return call(*args, **kwargs)
            finally:
                self._owner = None
                while self._postponed:
                    self._postponed.popleft()()

    def run_after(self, call: Callable[[], None]) -> None:
        """Call `call` when no other call runs: within a call, at its end."""
        if self._is_within():
            self._postponed.append(call)
            return
        with self._lock:
            if self._owner is None:
                self._prepare()
                call()
            else:
                self._postponed.append(call)

    def after_fork(self) -> None:
        """Leave the state of threads that a new process does not have."""
        if self._owner != threading.get_ident():
            self._forked = self._forked or self._owner is not None
            self._lock, self._owner = threading.RLock(), None


_locks: WeakSet[DeviceLock] = WeakSet()


def _after_fork() -> None:
    for lock in list(_locks):
        lock.after_fork()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
