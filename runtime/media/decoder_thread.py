"""A thread that decodes ahead into a short queue, or keeps the newest frames of a live source."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator

import numpy as np

from ..errors import SamwiseRuntimeError, VideoError, summarize
from .source import Frame, Source

_POLL_SECONDS = 0.1


class DecoderThread:
    """The thread that fills the queue, started by the first `get`."""

    def __init__(self, source: Source, frames: Iterator[Frame], depth: int, drops: bool) -> None:
        self._frames, self._source_frames, self._drops = frames, source.frames, drops
        self._queue: queue.Queue[Frame | Exception | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._name = f"frames of {source.name}"
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def get(self) -> Frame | Exception | None:
        """Return the next frame, the error that ended decoding, or None after the last frame."""
        if self._stopped.is_set():
            return None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name=self._name)
            self._thread.start()
        return self._queue.get()

    def peek(self) -> list[np.ndarray] | None:
        """Return the frames in the queue; None at the end, and where they may be dropped."""
        if self._drops or self.stopped:
            return None
        with self._queue.mutex:
            return [item.array for item in self._queue.queue if isinstance(item, Frame)]

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread is None:  # otherwise the thread closes the source
            close_frames(self._source_frames)

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(timeout=1.0)  # a thread blocked in a dead network read ends by its own timeout

    def _run(self) -> None:
        end: Exception | None = None
        try:
            for frame in self._frames:
                self._put(frame)
                if self._stopped.is_set():
                    break
        except SamwiseRuntimeError as error:
            error.__context__ = None  # as in `open_video`
            end = error
        except Exception as error:  # the consumer raises it
            end = VideoError(f"decoding failed: {type(error).__name__}: {summarize(error)}")
        finally:
            close_frames(self._source_frames)  # frees the decoder here, in the thread that used it
        self._put(end)
        del end  # its traceback references this frame: without this, a cycle keeps the decoder's threads alive

    def _put(self, item: Frame | Exception | None) -> None:
        """Queue an item: wait for room, or drop the oldest frame for another one. Give up when stopped."""
        drops = self._drops and isinstance(item, Frame)
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=0 if drops else _POLL_SECONDS)
            except queue.Full:
                if drops:
                    self._drop_oldest()

    def _drop_oldest(self) -> None:
        with contextlib.suppress(queue.Empty):
            self._queue.get_nowait()
            self.dropped += 1


def close_frames(frames: Iterator[Frame]) -> None:
    """Release the source of an iterator."""
    close = getattr(frames, "close", None)  # generators have it, other iterators do not
    if close is not None:
        close()
