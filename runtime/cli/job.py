"""One video, from its frames through a session to output files."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from ..bundle.demo import Quality
from ..errors import VideoError
from ..media.frame_iterables import PeekableFrames
from ..media.video_reader import VideoReader
from ..results import Result, Stamp
from .signals import SignalGuard
from .summary import ObjectStats, ProgressBar, RunStats
from .tasks import Task
from .writer_thread import WriterThread
from .writers import Outputs


class Job:
    """Runs a task on a video and keeps its counts in `stats`. `read_to_end`: no frame is left in the reader."""

    def __init__(self, task: Task, video: VideoReader, outputs: Outputs, quality: Quality | None) -> None:
        self.stats = RunStats({obj: ObjectStats(prompt) for obj, prompt in task.objects.items()})
        self._task, self._video, self._outputs, self._quality = task, video, outputs, quality
        self._in_session: deque[np.ndarray] = deque()
        self._error: BaseException | None = None
        self.read_to_end = False

    def run(self, guard: SignalGuard) -> BaseException | None:
        """Process the video. Returns the cause of an early end (error, damaged video, signal), else None."""
        start = time.perf_counter()
        writer = WriterThread(self._write)
        try:
            with ProgressBar(self._video.name, self._video.count) as progress:
                for result in self._task.stream(PeekableFrames(self._frames(), self._video.peek)):
                    with guard.defer_signals():
                        self._put(writer, result)
                    progress.step()
        except (Exception, KeyboardInterrupt) as error:  # write what is computed before reporting the error
            self._error = self._error or error
        try:
            with guard.defer_signals(), contextlib.closing(writer):
                for result in self._task.waiting():
                    self._put(writer, result)
        except (Exception, KeyboardInterrupt) as error:
            self._error = self._error or error
        self.stats.seconds, self.stats.writing = time.perf_counter() - start, writer.seconds
        return self._error

    def _put(self, writer: WriterThread, result: Result) -> None:
        """Have a result written with its frame, the oldest of those in the session."""
        writer.put(self._in_session.popleft(), result, self._video.stamp(result.frame_index))

    def _frames(self) -> Iterator[np.ndarray]:
        """Yield frames until the video ends or fails; the session then completes those it holds."""
        while True:
            start = time.perf_counter()
            try:
                frame = next(self._video, None)
            except VideoError as error:
                self._error, frame = error, None
            self.stats.reading += time.perf_counter() - start
            if frame is None:
                self.read_to_end = self._error is None
                return
            self._in_session.append(frame)
            yield frame

    def _write(self, frame: np.ndarray, result: Result, stamp: Stamp) -> None:
        """Write one frame and count it. Runs in the writer thread, where no signal interrupts it."""
        self._outputs.add(self._video.frame_name(result.frame_index), frame, result, stamp)
        self.stats.count(result)
        if self._quality is not None:
            self._quality.add(result)
