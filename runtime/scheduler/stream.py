"""One stream of a scheduler."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from ..errors import PromptError, SamwiseRuntimeError
from ..results import Result, Stamp
from ..tracking.live import LiveSession
from ..tracking.session import OnlineSession
from ..tracking.work import Work
from .delivery import Delivery, Outcome
from .pending import Pending, PendingFrame, StreamOptions, now

T = TypeVar("T")
log = logging.getLogger(__name__)


class Stream:
    """One video on a `Scheduler`, by which it is made. Its methods may be called from any thread and never wait.

    num_done, num_dropped, num_failed  frames
    engine_seconds                     time that the engine has computed for it
    """

    def __init__(
        self,
        changed: threading.Condition,
        session: OnlineSession,
        deliver: Callable[[Delivery], None],
        options: StreamOptions,
    ) -> None:
        self._changed, self._session, self._deliver, self.options = changed, session, deliver, options
        self._pending = Pending(options)
        self._in_session: deque[tuple[Any, float]] = deque()
        """Tags, and seconds waited, of the frames whose results the session owes."""
        self._steps: Iterator[Result | Work | None] | None = None
        """Computation that has begun and not ended."""
        self.work: Work | None = None
        """What its next step runs, where that may run with the work of other streams."""
        self._is_held = self._is_cancelled = self._is_finished = False
        self._error: Exception | None = None
        self._last_result_at = 0.0
        """`engine_seconds` at the result before."""
        self._fed_tag: Any = None
        self.last_tag: Any = None
        """Tag of the last frame that the session has taken, which corrections refine; for functions of `call`."""
        self.is_over = False
        self.turn = 0.0
        """Weighted engine time, by which streams take turns."""
        self.num_done = self.num_dropped = self.num_failed = 0
        self.engine_seconds = 0.0

    # -- any thread -------------------------------------------------------------------------------------------------

    def put(
        self,
        frame: Any,
        prompts: Mapping[int, Any] | None = None,
        tag: Any = None,
        *,
        time: float | Stamp | None = None,
    ) -> bool:
        """Take a frame, uint8 RGB (H,W,3), which must not change before its delivery; return False if there is no room.

        prompts  on this frame, by object; only for a stream that was opened without sentences and concepts
        time     seconds from the first frame, for `Result.time`
        Raises PromptError for prompts that the stream does not take, UserError after its end.
        """
        if prompts and not isinstance(self._session, LiveSession):
            raise PromptError("a stream of sentences or concepts takes no prompts on frames; open one without them")
        with self._changed:
            taken = self._pending.add(PendingFrame(frame, prompts, tag, time, now()))
            self._changed.notify_all()
        return taken

    def call(self, function: Callable[[Any], T]) -> Future[T]:
        """Call `function(session)` on the engine's thread, after the frames that wait now: corrections, new concepts.

        Raises UserError after the end of the stream.
        """
        future: Future[T] = Future()
        with self._changed:
            self._pending.add_call(lambda: resolve(future, lambda: function(self._session), self._is_cancelled))
            self._changed.notify_all()
        return future

    def hold(self, is_held: bool) -> None:
        """Compute nothing more, or go on: for a source that does not take its results."""
        with self._changed:
            self._is_held = is_held
            self._changed.notify_all()

    def end(self) -> None:
        """Take no more frames. Those that wait are computed and handed out."""
        with self._changed:
            self._pending.is_ended = True
            self._changed.notify_all()

    def cancel(self, error: Exception | None = None) -> None:
        """End at once: at most one more frame is handed out, then `Outcome.END` with this error."""
        with self._changed:
            self._pending.is_ended = self._is_cancelled = True
            self._error = self._error or error
            self._changed.notify_all()

    @property
    def num_waiting(self) -> int:
        """Frames that wait."""
        with self._changed:
            return len(self._pending.frames)

    # -- the engine's thread ----------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether `step` has something to do."""
        if self.is_over or self._is_cancelled:
            return not self.is_over
        return not self._is_held and (self._steps is not None or bool(self._pending) or self._pending.is_ended)

    def step(self) -> None:
        """Do what is next: one step of a frame, a call, or the end."""
        started, self.work = now(), None
        try:
            if self._is_cancelled:
                self._leave()
            else:
                self._advance(started)
        except Exception as error:  # it is not one of the other streams
            self._fail(error)

    def _advance(self, started: float) -> None:
        if self._steps is None:
            self._begin()
        if self._steps is None:
            return
        try:
            result = next(self._steps)
        except StopIteration:
            self._steps, self.last_tag = None, self._fed_tag
            return
        if isinstance(result, Work):
            self.work = result
        elif result is not None:
            self.num_done += 1
            tag, waited = self._in_session.popleft()
            total = self.engine_seconds + now() - started
            computed, self._last_result_at = total - self._last_result_at, total
            self._hand_out(Delivery(Outcome.DONE, tag, result, waited=waited, computed=computed))

    def _begin(self) -> None:
        """Begin the next frame or the end, or make the next call."""
        with self._changed:
            item = self._pending.pop()
        self._hand_out_dropped()
        if isinstance(item, PendingFrame):
            self._fed_tag = item.tag
            self._in_session.append((item.tag, now() - item.arrival))
            prompts = (item.prompts,) if item.prompts else ()
            self._steps = self._session.feed(item.image, *prompts, time=item.time)
        elif item is not None:
            item()
        elif self._is_finished:
            self._leave()
        elif self._pending.is_ended:
            self._is_finished = True
            self._steps = self._session.finish()

    def _fail(self, error: Exception) -> None:
        """Hand out the error of a frame, or end if the session cannot go on."""
        if not isinstance(error, SamwiseRuntimeError):
            log.error("a frame of a stream failed", exc_info=error)
        self._steps = None
        if self._session.is_closed or not self._in_session:
            self.cancel(error)
        else:  # the frame was not taken
            self.num_failed += 1
            self._hand_out(Delivery(Outcome.FAILED, self._in_session.pop()[0], error=error))

    def _leave(self) -> None:
        with self._changed:
            calls = self._pending.clear()
        for call in calls:
            call()
        self._hand_out_dropped()
        self._steps, self.is_over = None, True
        self._session.close()
        self._hand_out(Delivery(Outcome.END, error=self._error))
        self._deliver = lambda delivery: None  # else owner and stream may wait for the garbage collector

    def _hand_out_dropped(self) -> None:
        while self._pending.dropped:
            self.num_dropped += 1
            self._hand_out(Delivery(Outcome.DROPPED, self._pending.dropped.popleft()))

    def _hand_out(self, delivery: Delivery) -> None:
        try:
            self._deliver(delivery)
        except Exception:
            log.exception("a stream ends because its delivery failed")
            self.cancel()


def resolve(future: Future[T], function: Callable[[], T], is_cancelled: bool = False) -> None:
    """Call `function` and put its value or error into `future`."""
    if is_cancelled:
        future.cancel()
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
