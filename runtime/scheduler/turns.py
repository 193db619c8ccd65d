"""Turns of streams: which one computes its next step (start-time fair queueing, Goyal et al. 1996)."""

from __future__ import annotations

from .pending import now
from .stream import Stream


class Turns:
    """Open streams. Of those that are ready, the one that has used least engine time / weight is next.

    One that was idle starts at the present: it has no credit. Its user holds a lock.
    """

    def __init__(self, batch: int, batch_wait: float) -> None:
        """`batch`: streams whose work runs together; `batch_wait`: seconds that work waits for that of others."""
        self._batch, self._batch_wait = batch, batch_wait
        self.streams: list[Stream] = []
        self._idle: set[Stream] = set()
        """Streams that had nothing to do when one was chosen last."""
        self._present = 0.0
        """Turn of the stream that was chosen last."""

    def add(self, stream: Stream) -> None:
        """Add a stream, which takes part from the present on."""
        self.streams.append(stream)
        self._idle.add(stream)

    def choose(self) -> Stream | None:
        """Return the stream whose turn it is; None if none is ready."""
        ready = [stream for stream in self.streams if stream.is_ready]
        for stream in self._idle.intersection(ready):
            stream.turn = max(stream.turn, self._present)
        self._idle = set(self.streams).difference(ready)
        if not ready:
            return None
        if self._batch > 1:
            ready = [s for s in ready if s.work is None or now() - s.work.since > self._batch_wait] or ready
        chosen = min(ready, key=lambda stream: stream.turn)
        self._present = chosen.turn
        return chosen

    def partners(self, stream: Stream) -> list[Stream]:
        """Return other streams whose work may run with that of `stream`, those of the earliest turns first."""
        work, found = stream.work, list[Stream]()
        if work is None:
            return found
        num_objects = work.num_objects
        for other in sorted(self.streams, key=lambda other: other.turn):
            of = other.work
            if (
                other is stream
                or of is None
                or of.key != work.key
                or not other.is_ready
                or len(found) + 1 >= self._batch
            ):
                continue
            if num_objects + of.num_objects <= work.max_objects:
                found.append(other)
                num_objects += of.num_objects
        return found

    @staticmethod
    def charge(stream: Stream, seconds: float) -> None:
        """Count engine time."""
        stream.engine_seconds += seconds
        stream.turn += seconds / stream.options.weight

    def forget_ended(self) -> bool:
        """Remove the streams that are over; return whether there were any."""
        before = len(self.streams)
        self.streams = [stream for stream in self.streams if not stream.is_over]
        return len(self.streams) < before

    def load(self, new_rate: float = 0.0) -> float:
        """Return the part of the engine's time that streams of a stated rate need, and one more of `new_rate`.

        The time of a frame is what those of its stream have taken; of a stream without any, the mean of all streams.
        """
        seconds, frames = sum(s.engine_seconds for s in self.streams), sum(s.num_done for s in self.streams)
        mean = seconds / frames if frames else 0.0
        per_frame = [s.engine_seconds / s.num_done if s.num_done else mean for s in self.streams]
        known = (t * (s.options.rate or 0.0) for t, s in zip(per_frame, self.streams, strict=True))
        return sum(known) + new_rate * mean
