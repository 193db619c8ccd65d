"""Schedulers of several engines behind one interface: of processes that hold an engine for each core or GPU."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from ..engine import Engine
from ..errors import Busy
from ..prompts import Concept, Text
from .delivery import Delivery
from .scheduler import Scheduler
from .stream import Stream

T = TypeVar("T")


class SchedulerGroup:
    """Schedulers whose engines hold the same bundle. A new stream goes to the one that has fewest; it stays there."""

    def __init__(self, schedulers: Sequence[Scheduler]) -> None:
        self.schedulers = tuple(schedulers)

    @property
    def engine(self) -> Engine:
        """One of the engines, to ask what its bundle can do."""
        return self.schedulers[0].engine

    @classmethod
    def of(cls, engines: Sequence[Engine], max_streams: int) -> SchedulerGroup:
        """Make a scheduler for each engine, which have the streams in equal parts."""
        parts = [max_streams // len(engines) + (i < max_streams % len(engines)) for i in range(len(engines))]
        return cls([Scheduler(engine, part) for engine, part in zip(engines, parts, strict=True) if part])

    @property
    def batch_sizes(self) -> Counter[int]:
        """See `Scheduler.batch_sizes`; of all."""
        return sum((scheduler.batch_sizes.copy() for scheduler in self.schedulers), Counter())

    @property
    def max_streams(self) -> int:
        """Streams at a time, of all."""
        return sum(scheduler.max_streams for scheduler in self.schedulers)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Streams that are not over."""
        return tuple(stream for scheduler in self.schedulers for stream in scheduler.streams)

    @property
    def load(self) -> float:
        """Load of the engine that has least: what decides whether a new stream of a stated rate has time."""
        return min(scheduler.load for scheduler in self.schedulers)

    @property
    def stuck_seconds(self) -> float:
        """See `Scheduler.stuck_seconds`; of the one whose step takes longest."""
        return max(scheduler.stuck_seconds for scheduler in self.schedulers)

    def open(
        self, prompts: Sequence[Text] | Sequence[Concept] | None, deliver: Callable[[Delivery], None], **options: Any
    ) -> Stream:
        """Start a stream; see `Scheduler.open`. Raises Busy where no engine has room for it."""
        busy = None
        for scheduler in self._by_streams():
            try:
                return scheduler.open(prompts, deliver, **options)
            except Busy as error:
                busy = busy or error
        assert busy is not None
        raise busy

    def submit(self, function: Callable[[Engine], T]) -> Future[T]:
        """Call `function(engine)` on the thread of the engine that has fewest streams; see `Scheduler.submit`."""
        return self._by_streams()[0].submit(function)

    def _by_streams(self) -> list[Scheduler]:
        return sorted(self.schedulers, key=lambda scheduler: len(scheduler.streams))

    def drain(self, seconds: float | None = None) -> bool:
        """See `Scheduler.drain`."""
        end = None if seconds is None else time.monotonic() + seconds
        for scheduler in self.schedulers:
            scheduler.drain(0)  # all begin at once
        left = (None if end is None else max(0.0, end - time.monotonic()) for _ in self.schedulers)
        return all(scheduler.drain(seconds) for scheduler, seconds in zip(self.schedulers, left, strict=True))

    def close(self) -> None:
        """Close all schedulers, not their engines."""
        for scheduler in self.schedulers:
            scheduler.close()

    def __enter__(self) -> SchedulerGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
