"""Text session: one video and its sentences, clip by clip or frame by frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from ...device.base import Array
from ...device.lock import DeviceLock
from ...media.frame_iterables import iterate_frames, opened, peek
from ...prompts import Text, check_texts
from ...results import Result, Stamp
from ...tracking.session import OnlineSession, iterator_of_results, results_of, stamp_at, steps_under_lock, synchronized
from ...tracking.work import Work
from .sentences import Sentences


class TextSession(OnlineSession):
    """Tracks the objects that sentences name through one video. Made by `Engine.session`; a context manager.

    Text and vision are fused over a clip of `window` frames, so results come in bursts: `push` returns them when a clip
    is complete, `flush` completes the rest. Pushing after a flush continues with the same memory. A clip whose results
    are not taken, because a loop over `stream` is left, is computed to its end before the next one. With low latency
    every `push` returns the result of its frame. It may be used from any thread; see `Engine`.
    """

    def __init__(self, sentences: Sentences, lock: DeviceLock) -> None:
        super().__init__(lock)
        self._sentences = sentences

    @property
    def object_ids(self) -> tuple[int, ...]:
        """One object for each sentence that was not removed. They are numbered from 1, and no number is used again."""
        return self._sentences.object_ids

    @synchronized
    def add(self, *prompts: Text) -> tuple[int, ...]:
        """Start following more sentences, with an empty memory, and return their object ids.

        They begin with the next clip, or the next frame with low latency; results have them from there on. Those of the
        others do not change. Raises PromptError, UserError, also when there is no room for another object.
        """
        self._check_open()
        return self._sentences.add(check_texts(prompts, "runtime.Text"))

    @synchronized
    def remove(self, object_id: int) -> None:
        """Stop following a sentence: the next result is without it. Those of the others do not change.

        Sentences that were added together share their memory: it is released with the last of them. Raises UserError
        for an object that does not exist, and for the last one.
        """
        self._check_open()
        self._sentences.remove(object_id)

    @synchronized
    def push(self, frame: Any, *, time: float | Stamp | None = None) -> list[Result]:
        """Take one frame, uint8 RGB (H,W,3); return the results of its clip if it completes one, else an empty list.

        `time`: seconds from the first frame, for `Result.time`.
        With kernels it may lie on the GPU (`__cuda_array_interface__` or DLPack: PyCUDA, CuPy, torch), where it is read
        in stream order; do not write over it before its result is there.
        Raises VideoError for anything that is not such a frame or changes size, UserError after `close`.
        """
        return list(results_of(self._steps(self._add(frame, stamp_at(time)))))

    @synchronized
    def flush(self) -> list[Result]:
        """Return the results of the frames that wait for their clip to fill up. Raises UserError after `close`."""
        self._check_open()
        return list(results_of(self._last_steps()))

    @iterator_of_results
    def stream(self, frames: Any) -> Iterator[Result]:
        """Push every frame, then flush; yield each result when it is computed. Raises as `push` does.

        frames  a `VideoReader`, anything that `open_video` opens, or an iterable of arrays or image files
        """
        with opened(frames) as frames:
            for number, (frame, stamp) in enumerate(iterate_frames(frames), 1):
                steps = self._steps(self._lock.run(self._add, frame, stamp))
                for step in steps_under_lock(self._lock, steps):
                    self._lock.run(self._sentences.look_ahead, peek(frames, number))
                    if isinstance(step, Result):
                        yield step
        yield from results_of(steps_under_lock(self._lock, self._last_steps()))

    @iterator_of_results
    def feed(self, frame: Any, *, time: float | Stamp | None = None) -> Iterator[Result | Work | None]:
        """Take one frame, and compute the clip that it completes in steps; see `OnlineSession.feed`."""
        results = self._lock.run(self._add, frame, stamp_at(time))
        yield None
        yield from steps_under_lock(self._lock, self._steps(results))

    @iterator_of_results
    def finish(self) -> Iterator[Result | Work | None]:
        """Compute the frames that wait in steps; see `OnlineSession.feed`."""
        yield from steps_under_lock(self._lock, self._last_steps())

    @property
    def device_logits(self) -> list[Array]:
        """Low-res logits (n, s, s) of the latest result on the device, one array per batch of prompts.

        On CUDA the arrays have `__cuda_array_interface__`. The next frame overwrites them, so that there are none with
        `decode_ahead`, which raises UserError.
        """
        self._check_open()
        return self._sentences.device_logits

    def _release(self) -> None:
        self._sentences.close()

    def _add(self, frame: Any, stamp: Stamp) -> deque[Result]:
        """Take a frame into the clip. Return where the results of the clip go if it is complete.

        What is left of the clip before it is computed first: both use the same arrays.
        """
        self._check_open()
        frame = self._sentences.check_frame(frame)
        while not self._sentences.is_computed:
            self._advance()
        return self._sentences.take(frame, stamp)

    def _advance(self) -> None:
        """Run one stage of the encoding of a clip, or decode its next frame."""
        self._check_open()
        with self._close_on_error():
            self._sentences.advance()

    def _steps(self, results: deque[Result]) -> Iterator[Result | Work | None]:
        """Compute a clip in steps."""
        while self._sentences.has_more(results):
            if not results:
                yield from self._sentences.next_work()
            if not results:  # otherwise it was computed before
                self._advance()
            yield results.popleft() if results else None

    def _last_steps(self) -> Iterator[Result | Work | None]:
        """Compute the frames that wait, in steps."""
        while (results := self._sentences.begin()) is not None:
            yield from self._steps(results)
