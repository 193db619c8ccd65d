"""Frames in: one iterator over every kind of source, decoded in the background.

    with frames("clip.mp4", stride=2) as video:
        print(video.name, video.fps, video.size, video.count)
        for frame in video:            # uint8 RGB (H, W, 3)
            ...

Decoding runs in a thread of its own behind a short queue, so that it overlaps inference; leaving the loop, closing the
object or dropping it ends the thread. `sources.py` knows the kinds of sources.
"""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import SamwiseRuntimeError, VideoError
from .video_sources import Source, open_source

QUEUE_FRAMES = 8
QUEUE_BYTES = 256 << 20
"""The queue holds up to 8 frames, fewer where they are huge."""

_POLL_SECONDS = 0.1


class Frames:
    """An open video: iterate over it once.

    name    what to call it in messages
    fps     frames per second of what is delivered (a stride is taken into account)
    size    (height, width)
    count   number of frames to come, an estimate for some files; None for a camera
    live    a camera or network stream: what inference is too slow for is dropped, oldest first (`dropped` counts it)
    notes   what to tell the user at the end, beyond errors

    Iterating raises VideoError when the source turns out damaged or changes its size, after the frames before that.
    """

    def __init__(self, source: Source, stride: int, max_frames: int | None) -> None:
        self.name, self.fps, self.live, self.notes = source.name, source.fps, source.live, source.notes
        self.stride = stride
        self._names, self._read = source.names, source.read
        known = [n for n in (source.count, max_frames) if n is not None]
        self.count = min(known) if known else None
        first = next(source.read, None)
        if first is None:
            raise VideoError(f"{self.name}: holds no frame")
        self.size = first.shape[:2]
        limited = itertools.islice(_same_size(source, first), max_frames)
        depth = max(1, min(QUEUE_FRAMES, QUEUE_BYTES // first.nbytes))
        self._state = _State(queue.Queue(depth), source.live)
        self._thread = threading.Thread(
            target=_work, args=(limited, source.read, self._state), daemon=True, name=f"frames of {self.name}"
        )
        # The thread knows the state, not this object, so that dropping the object ends the thread.
        self._finalizer = weakref.finalize(self, _let_go, self._state, source.read)

    @property
    def dropped(self) -> int:
        return self._state.dropped

    def frame_name(self, index: int) -> str:
        """What to call the frame `index` (0-based, as delivered) in file names: its own stem, or its source number."""
        return self._names[index] if self._names else f"{index * self.stride:05d}"

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        if self._state.stop.is_set():
            raise StopIteration
        if not self._state.started:
            self._state.started = True
            self._thread.start()
        item = self._state.queue.get()
        if isinstance(item, np.ndarray):
            return item
        self.close()
        if item is None:
            raise StopIteration
        try:
            raise item
        finally:
            del item  # the error knows this call: without it the two would keep each other, and the decoder with them

    def close(self) -> None:
        """Stop decoding and let go of the source. May be called twice."""
        _let_go(self._state, self._read)
        if self._state.started:
            self._thread.join(timeout=1.0)  # one that is blocked in a dead network read ends by its own timeout

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def frames(source: str | Path | int, stride: int = 1, max_frames: int | None = None) -> Frames:
    """Open a video file, a folder of frames, a picture, a camera number, or an RTSP or HTTP address.

    `stride`: deliver every stride-th frame; `max_frames`: at most so many. The first frame is decoded here, so that a
    source that cannot be read at all is told at once. Raises VideoError.
    """
    if stride < 1:
        raise VideoError(f"stride {stride}: must be 1 or more")
    if max_frames is not None and max_frames < 1:
        raise VideoError(f"max_frames {max_frames}: must be 1 or more")
    return Frames(open_source(source, stride), stride, max_frames)


class _State:
    """What the thread and its consumer share."""

    def __init__(self, items: queue.Queue, live: bool) -> None:
        self.queue, self.live = items, live
        self.stop = threading.Event()
        self.started = False
        self.dropped = 0

    def put(self, item: np.ndarray | Exception | None) -> None:
        """Queue an item: wait for room, or, live, make room by dropping the oldest frame. Gives up when stopped."""
        while not self.stop.is_set():
            try:
                return self.queue.put(item, timeout=0 if self.live else _POLL_SECONDS)
            except queue.Full:
                if self.live:
                    self._drop()

    def _drop(self) -> None:
        try:
            self.queue.get_nowait()
            self.dropped += 1
        except queue.Empty:
            pass


def _same_size(source: Source, first: np.ndarray) -> Iterator[np.ndarray]:
    for index, frame in enumerate(itertools.chain([first], source.read)):
        if frame.shape != first.shape:
            raise VideoError(
                f"{source.name}: the size changes from {first.shape[1]}x{first.shape[0]} to "
                f"{frame.shape[1]}x{frame.shape[0]} at frame {index}; cut the video there or scale it"
            )
        yield frame


def _work(limited: Iterator[np.ndarray], read: Iterator[np.ndarray], state: _State) -> None:
    end: Exception | None = None
    try:
        for frame in limited:
            state.put(frame)
            if state.stop.is_set():
                break
    except SamwiseRuntimeError as error:
        end = error
    except Exception as error:  # a thread has nobody to raise to: the consumer raises it
        end = VideoError(f"the video cannot be read on: {type(error).__name__}: {' '.join(str(error).split())[:160]}")
    finally:
        _close(read)  # frees the decoder here, in the thread that used it
    state.put(end)
    del end  # else this call and the error, which knows it, keep each other and the decoder's threads alive


def _let_go(state: _State, read: Iterator[np.ndarray]) -> None:
    state.stop.set()
    if not state.started:  # else the thread closes what it reads from
        _close(read)


def _close(read: Iterator[np.ndarray]) -> None:
    close = getattr(read, "close", None)
    if close is not None:
        close()
