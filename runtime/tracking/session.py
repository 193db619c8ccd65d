"""Base class of all sessions: the lock of the engine, opening and closing."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from numbers import Real
from typing import Any, TypeVar, cast

from ..device.lock import DeviceLock
from ..errors import UserError
from ..results import NO_STAMP, Result, Stamp
from .work import Work

Method = TypeVar("Method", bound=Callable[..., Any])
SessionType = TypeVar("SessionType", bound="Session")
T = TypeVar("T")


def synchronized(method: Method) -> Method:
    """Decorate a public method to run under `self._lock`, the `Device.lock` of the engine.

    Methods that run under it call only ones that are not decorated: a call within a call is refused. Not for
    generators, because the caller's code runs between their steps: they run each step under the lock.
    """

    @wraps(method)
    def locked(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._lock.run(method, self, *args, **kwargs)

    return cast(Method, locked)


class ResultIterator(Generator[T, None, None]):
    """Results of a generator, which one call at a time may take."""

    def __init__(self, results: Generator[T, None, None]) -> None:
        self._results = results

    def send(self, value: None) -> T:
        return _taken(self._results.send, value)

    def throw(self, *error: Any) -> T:
        return _taken(self._results.throw, *error)


def _taken(take: Callable[..., T], *args: Any) -> T:
    try:
        return take(*args)
    except ValueError as error:
        if str(error) != "generator already executing":
            raise
        raise UserError(
            "another call, maybe of another thread, is taking a result of this iterator; take them in one thread"
        ) from None


def iterator_of_results(method: Callable[..., Iterator[T]]) -> Callable[..., Iterator[T]]:
    """Decorate a generator method to return a `ResultIterator`."""

    @wraps(method)
    def iterate(*args: Any, **kwargs: Any) -> Iterator[T]:
        return ResultIterator(cast(Generator[T, None, None], method(*args, **kwargs)))

    return iterate


_END: Any = object()


def steps_under_lock(lock: DeviceLock, steps: Iterator[T]) -> Iterator[T]:
    """Take steps of a generator, each under the lock; the caller's code runs without it between them."""
    while (step := lock.run(next, steps, _END)) is not _END:
        yield step


def results_of(steps: Iterator[Any]) -> Iterator[Result]:
    """Yield the results among steps; work among them is run by the session, alone."""
    return (step for step in steps if isinstance(step, Result))


def stamp_at(time: Any) -> Stamp:
    """Return the stamp of a frame that is shown at a time in seconds. Raises UserError unless it is a number or None.

    time  or the stamp itself, of a frame of a `VideoReader`
    """
    if isinstance(time, Stamp):
        return time
    if time is None:
        return NO_STAMP
    if isinstance(time, bool) or not isinstance(time, Real) or not math.isfinite(time):
        raise UserError(f"time must be a number of seconds, not {time!r}")
    return Stamp(float(time))


class Session:
    """One video; a context manager that returns the memory of its objects, as does the garbage collector.

    It may be used from any thread. Calls on the sessions of an engine run one at a time; others wait.
    """

    def __init__(self, lock: DeviceLock) -> None:
        self._lock = lock
        self._closed_by: str | None = None
        """Reason why the session is closed; None: it is open."""
        self._work: Sequence[Work] = ()
        """What `feed` has given out and has no outcome yet."""
        self._on_close = ExitStack()
        """Calls that release what the session has besides the memory of its objects."""

    def close(self) -> None:
        """Return the memory of the objects to the engine, after a call that runs. Closing twice is harmless."""
        self._lock.run_after(self._close)

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._closed_by is not None

    def _close(self) -> None:
        self._closed_by = self._closed_by or ""
        self._cancel_work()
        self._release()
        self._on_close.close()

    def _cancel_work(self) -> None:
        """Cancel the work that was given out: its objects may be gone."""
        for work in self._work:
            work.is_cancelled = True
        self._work = ()

    @abstractmethod
    def _release(self) -> None:
        """Release the memory of the objects. May be called twice."""

    def __enter__(self: SessionType) -> SessionType:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed_by is not None:
            raise UserError(f"this session is closed{self._closed_by}; open another one")

    @contextmanager
    def _close_on_error(self) -> Iterator[None]:
        """Close the session if the computation inside fails or is interrupted: its memory lacks a frame then."""
        try:
            yield
        except BaseException as error:
            self._closed_by = f" because a frame was not finished ({type(error).__name__})"
            self.close()
            raise


class OnlineSession(Session):
    """A session whose frames come one by one. `push` computes all that a frame completes; `feed` does so in steps."""

    @abstractmethod
    def push(self, frame: Any, *, time: float | Stamp | None = None) -> list[Result]:
        """Take one frame; return the results that it completes."""

    @abstractmethod
    def flush(self) -> list[Result]:
        """Return the results of the frames that wait, at the end of a video."""

    def feed(self, frame: Any, *prompts: Any, time: float | Stamp | None = None) -> Iterator[Result | Work | None]:
        """Take one frame as `push` does, but compute in steps of about a frame: each `next` does one, under the lock.

        Between two steps other sessions of the engine may compute. None: the step gave no result. `Work`: it comes
        next, and may be run together with that of others.
        """
        yield from self.push(frame, *prompts, time=time)

    def finish(self) -> Iterator[Result | Work | None]:
        """Compute the results of the frames that wait in steps, as `feed` does."""
        yield from self.flush()
