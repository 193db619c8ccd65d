"""Whole video files over HTTP: a job for each, from its upload to a zip of results.json and masks."""

from __future__ import annotations

import contextlib
import queue
import secrets
import shutil
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.concept_task import numbered
from ..cli.output_folder import MASKS, RESULTS
from ..cli.summary import RunStats, describe_run, summarize_run
from ..cli.writers import OutputOptions, Outputs
from ..errors import Busy, UserError, VideoError
from ..media.container import open_upload
from ..media.video_reader import VideoReader
from ..prompts import Concept
from ..results import Result
from ..scheduler import Delivery, Outcome, Stream
from .service import SHUTDOWN, Account, Service

NAME = "the file"
"""Name of an uploaded file in messages and results: clients name no files."""


@dataclass(eq=False)
class Job:
    """One file, with prompts of one kind. `state`: uploading, waiting, running, done, failed or cancelled."""

    account: Account
    folder: Path
    texts: list[Any] | None
    """Sentences, or concepts."""
    clicks: Mapping[int, dict[int, Any]]
    """By frame and object."""
    options: Mapping[str, Any]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = "uploading"
    total: int | None = None
    message: str | None = None
    changed: float = field(default_factory=time.monotonic)
    stats: RunStats = field(default_factory=lambda: RunStats({}))

    def __post_init__(self) -> None:
        self.video, self.result = self.folder / "video", self.folder / "result.zip"
        self.labels = {number: prompt.label for number, prompt in enumerate(self.texts or (), 1)}
        self.has_concepts = any(isinstance(prompt, Concept) for prompt in self.texts or ())

    def describe(self) -> dict[str, Any]:
        """Return the progress as JSON."""
        progress = {"done": self.stats.frames, "total": self.total}
        return {"id": self.id, "state": self.state, **progress, "message": self.message}

    def become(self, state: str, message: str | None = None) -> None:
        """Change the state; a cancelled job stays so."""
        if self.state != "cancelled":
            self.state, self.message, self.changed = state, message, time.monotonic()


class Videos:
    """The jobs of a server, two at a time, in a temporary folder."""

    def __init__(self, service: Service) -> None:
        self._service, self._limits = service, service.limits
        self._jobs: dict[str, Job] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="samwise-serve-")
        self._threads = ThreadPoolExecutor(2, "samwise-video")

    def find(self, name: str, account: Account) -> Job | None:
        """Return a job of this token."""
        self._forget_expired()
        job = self._jobs.get(name)
        return job if job is not None and job.account is account else None

    async def add(self, chunks: AsyncIterator[bytes], account: Account, *prompts: Any) -> Job:
        """Take a file and start its job; `prompts`: texts, clicks and options of it. Raises Busy, UserError."""
        self._forget_expired()
        if sum(job.account is account for job in self._jobs.values()) >= self._limits.videos:
            raise Busy(f"this token has {self._limits.videos} files here; delete one")
        job = Job(account, Path(tempfile.mkdtemp(dir=self._folder.name)), *prompts)
        self._jobs[job.id] = job
        try:
            with open(job.video, "wb") as file:
                async for chunk in chunks:
                    await self._service.code(file.write, chunk)
                    if file.tell() > self._limits.video_bytes:
                        raise UserError(f"the file has more than {self._limits.video_bytes:,} bytes; send a part of it")
        except BaseException:
            self.remove(job)
            raise
        job.become("waiting")
        self._threads.submit(self._run, job)
        return job

    def remove(self, job: Job) -> None:
        """Cancel a job and delete its files."""
        self._jobs.pop(job.id, None)
        job.become("cancelled")
        shutil.rmtree(job.folder, ignore_errors=True)

    def close(self) -> None:
        """Cancel all jobs and delete their files."""
        for job in list(self._jobs.values()):
            self.remove(job)
        self._threads.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def _forget_expired(self) -> None:
        oldest = time.monotonic() - self._limits.video_seconds
        for job in list(self._jobs.values()):
            if job.state in ("done", "failed") and job.changed < oldest:
                self.remove(job)

    # -- a thread of a job ----------------------------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        job.become("running")
        try:
            with VideoReader(open_upload(job.video, NAME), 1, None) as video:
                if video.size[0] * video.size[1] > self._limits.pixels:
                    raise VideoError(f"frames of {video.size[1]}x{video.size[0]} are too large; scale the video down")
                job.total = video.count
                self._write(job, video)
            job.become("done")
        except Exception as error:
            if job.state != "cancelled":
                job.become("failed", self._service.explain(error))
        finally:
            with contextlib.suppress(OSError):
                job.video.unlink()

    def _write(self, job: Job, video: VideoReader) -> None:
        """Write the files of the command, and put them into the zip."""
        out, started = job.folder / "out", time.monotonic()
        objects = {obj for by_object in job.clicks.values() for obj in by_object} or set(job.labels)
        known = {} if job.has_concepts else {obj: obj for obj in sorted(objects)}
        options = OutputOptions(job.labels, known, overlay=False, concepts=job.has_concepts)
        header = describe_run(self._service.engine, video)
        with (
            contextlib.closing(self._results(job, video)) as results,
            Outputs(out, video.size, video.fps, header, options) as outputs,
        ):
            for found in results:
                result, index = numbered(found) if job.has_concepts else found, found.frame_index
                outputs.add(video.frame_name(index), np.empty(0), result, video.stamp(index))
                job.stats.count(result)
            job.stats.seconds = time.monotonic() - started
            outputs.close({**summarize_run(job.stats, job.labels, {}, complete=True), "notes": list(video.notes)})
        with zipfile.ZipFile(job.result, "w") as archive:
            archive.write(out / RESULTS, RESULTS, zipfile.ZIP_DEFLATED)
            for mask in sorted((out / MASKS).iterdir()):
                archive.write(mask, f"{MASKS}/{mask.name}")
        shutil.rmtree(out)

    def _results(self, job: Job, video: VideoReader) -> Generator[Result, None, None]:
        """Put the frames into a stream, and yield its results. Raises what ended it."""
        deliveries: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        stream = self._open(job, deliveries.put)
        try:
            for number, frame in enumerate(video):
                if number >= self._limits.video_frames:
                    raise VideoError(f"the file has more than {number:,} frames; send a part of it")
                while not stream.put(frame, job.clicks.get(number), number, time=video.frame_time(number)):
                    yield from self._take(job, deliveries, 0.05)
                yield from self._take(job, deliveries)
            stream.end()
            while not stream.is_over or not deliveries.empty():
                yield from self._take(job, deliveries, 0.5)
        finally:
            stream.cancel()

    def _open(self, job: Job, deliver: Callable[[Delivery], None]) -> Stream:
        """Open the stream when there is room. Raises Busy after an hour."""
        end = time.monotonic() + 3600
        while True:
            try:
                return self._service.scheduler.open(job.texts, deliver, **job.options)
            except Busy:
                if job.state == "cancelled" or self._service.is_draining or time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def _take(self, job: Job, deliveries: queue.SimpleQueue[Delivery], seconds: float = 0.0) -> Iterator[Result]:
        """Yield the results that there are, or come in time. Raises what ended the stream."""
        with contextlib.suppress(queue.Empty):
            while True:
                if job.state == "cancelled":
                    raise UserError("cancelled")
                delivery, seconds = deliveries.get(timeout=seconds), 0.0
                if delivery.error is not None:
                    raise delivery.error
                if delivery.outcome is Outcome.END and self._service.is_draining:
                    raise UserError(SHUTDOWN)
                if delivery.result is not None:
                    yield delivery.result
