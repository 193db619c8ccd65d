"""Scheduler: many streams on one engine."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

from ..engine import Engine
from ..errors import Busy, InternalError, UserError
from ..prompts import Concept, Text
from ..tracking.session import OnlineSession
from .delivery import Delivery
from .pending import StreamOptions, now
from .stream import Stream, resolve
from .tuning import default_batch
from .turns import Turns

T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_LOAD = 0.9
"""Part of the engine's time that streams of a stated rate may take."""
_OPTIONS = {field.name for field in fields(StreamOptions)}


class Scheduler:
    """Streams of one engine, and the thread that computes them; a context manager. The engine stays the caller's.

    max_streams  streams at a time
    batch        streams whose frames are decoded in one call; 1: none; None: see `default_batch`
    batch_wait   seconds that a frame waits for those of others before it is decoded
    """

    def __init__(
        self, engine: Engine, max_streams: int = 8, batch: int | None = None, batch_wait: float = 0.05
    ) -> None:
        self.engine, self.max_streams = engine, max_streams
        self.batch = default_batch(engine) if batch is None else batch
        for name, value in (("max_streams", max_streams), ("batch", self.batch)):
            if value < 1:
                raise UserError(f"{name} must be 1 or more, not {value}")
        self._changed = threading.Condition()
        self._turns = Turns(self.batch, batch_wait)
        self.batch_sizes: Counter[int] = Counter()
        """Calls that decoded the frames of so many streams, by their number."""
        self._num_opening = 0
        self._calls: list[Callable[[], None]] = []
        self._step_started: float | None = None
        self._is_draining = self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="samwise-scheduler", daemon=True)
        self._thread.start()

    # -- streams --------------------------------------------------------------------------------------------------

    def open(
        self, prompts: Sequence[Text] | Sequence[Concept] | None, deliver: Callable[[Delivery], None], **options: Any
    ) -> Stream:
        """Start a stream.

        prompts  sentences or concepts; None: points, boxes and masks come with the frames
        deliver  called on the engine's thread with what becomes of each frame; it should only pass it on
        options  those of `StreamOptions`, and those of `Engine.session` or `Engine.live`
        Raises Busy, at once, where there is no room for another stream or its rate; Busy when there is none for its
        objects; PromptError; UserError.
        """
        own = StreamOptions(**{name: options.pop(name) for name in _OPTIONS & set(options)})
        with self._changed:
            self._check_room(own)
            self._num_opening += 1
        try:
            try:
                session = self.submit(lambda _: self._open_session(prompts, options)).result()
            except CancelledError:
                raise Busy(_CLOSED) from None
            stream = Stream(self._changed, session, deliver, own)
            with self._changed:
                if self._is_closed or self._is_draining:
                    session.close()
                    raise Busy(_CLOSED)
                self._turns.add(stream)
        finally:
            with self._changed:
                self._num_opening -= 1
        return stream

    def _open_session(self, prompts: Sequence[Text] | Sequence[Concept] | None, options: Any) -> OnlineSession:
        if prompts is None:
            return self.engine.live(**options)
        session: OnlineSession = self.engine.session(prompts, **options)
        return session

    def _check_room(self, options: StreamOptions) -> None:
        if self._is_closed or self._is_draining:
            raise Busy(_CLOSED)
        if len(self._turns.streams) + self._num_opening >= self.max_streams:
            raise Busy(f"all {self.max_streams} streams are in use; try again when one has ended")
        if options.rate is not None and (load := self._turns.load(options.rate)) > MAX_LOAD:
            raise Busy(f"the engine has no time for {options.rate:g} more frames a second (load {load:.2f})")

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Streams that are not over."""
        with self._changed:
            return tuple(self._turns.streams)

    @property
    def load(self) -> float:
        """Part of the engine's time that the streams of a stated rate need."""
        with self._changed:
            return self._turns.load()

    # -- other work -----------------------------------------------------------------------------------------------

    def submit(self, function: Callable[[Engine], T]) -> Future[T]:
        """Call `function(engine)` on the engine's thread, before the next step of a stream: for images and the like."""
        future: Future[T] = Future()
        call = partial(function, self.engine)
        if threading.current_thread() is self._thread:
            resolve(future, call)
            return future
        with self._changed:
            if self._is_closed:
                raise Busy(_CLOSED)
            self._calls.append(lambda: resolve(future, call, self._is_closed))
            self._changed.notify_all()
        return future

    @property
    def stuck_seconds(self) -> float:
        """Seconds that the present step has taken; 0: the engine waits for work; infinite: its thread has ended."""
        if not self._thread.is_alive():
            return float("inf")
        started = self._step_started
        return 0.0 if started is None else now() - started

    # -- end ------------------------------------------------------------------------------------------------------

    def drain(self, seconds: float | None = None) -> bool:
        """Take no new stream and end the present ones: what waits is computed. Returns whether all are over in time."""
        with self._changed:
            self._is_draining = True
            for stream in self._turns.streams:
                stream.end()
            return self._changed.wait_for(lambda: not self._turns.streams and not self._num_opening, seconds)

    def close(self) -> None:
        """Cancel every stream, and end the thread. Closing twice is harmless."""
        with self._changed:
            self._is_closed = True
            for stream in self._turns.streams:
                stream.cancel()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the engine's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (step := self._next()) is not None:
                self._step_started = now()
                step()
                self._step_started = step = None  # which would keep the memory of a stream that has ended
        except BaseException as error:
            log.critical("the scheduler has stopped", exc_info=error)
            with self._changed:
                self._is_closed = True
                streams, calls, self._turns, self._calls = self._turns.streams, self._calls, Turns(1, 0.0), []
            for call in calls:
                call()
            for stream in streams:
                stream.cancel(InternalError("the scheduler has stopped"))
                stream.step()

    def _next(self) -> Callable[[], None] | None:
        """Wait for work and return it; None: the scheduler is closed."""
        with self._changed:
            while True:
                if self._calls:
                    return self._calls.pop(0)
                if self._turns.forget_ended():
                    self._changed.notify_all()
                if (stream := self._turns.choose()) is not None:
                    return partial(self._step, stream, self._turns.partners(stream))
                if self._is_closed:
                    return None
                self._changed.wait()

    def _step(self, stream: Stream, partners: Sequence[Stream]) -> None:
        """Do the next step of a stream; its work, if it has any, together with that of partners."""
        if stream.work is not None:
            self.batch_sizes[1 + len(partners)] += 1
        if partners and stream.work is not None:
            started, together = now(), [stream, *partners]
            try:
                stream.work.run_together([partner.work for partner in partners if partner.work is not None])
            except Exception:  # each runs its own again, and has its own error
                log.exception("work of %d streams failed together", len(together))
            for one in together:
                self._turns.charge(one, (now() - started) / len(together))
        for one in (stream, *partners):
            started = now()
            one.step()
            self._turns.charge(one, now() - started)


_CLOSED = "no new stream is taken: the scheduler is draining or closed"
