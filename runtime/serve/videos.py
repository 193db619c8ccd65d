"""Whole video files over HTTP: a job for each, from its upload to a zip of results.json and masks."""

from __future__ import annotations

import contextlib
import queue
import secrets
import shutil
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..cli.output_folder import MASKS, RESULTS
from ..cli.summary import RunStats, describe_run, summarize_run
from ..cli.writers import OutputOptions, Outputs
from ..errors import Busy, UserError, VideoError
from ..imaging.masks import boxes_and_areas
from ..media.container import open_upload
from ..media.video_reader import VideoReader
from ..prompts import Concept, Text
from ..results import Result
from ..scheduler import Delivery, Outcome, Stream
from .service import SHUTDOWN, Account, Service

NAME = "the file"
"""Name of an uploaded file in messages and results: clients name no files."""


@dataclass(eq=False)
class Job:
    """One file. `prompts`: sentences, concepts, or by frame and object; `state`: uploading, waiting, running, done,
    failed or cancelled."""

    account: Account
    folder: Path
    prompts: list[Text] | list[Concept] | dict[int, dict[int, Any]]
    options: Mapping[str, Any]
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = "uploading"
    done: int = 0
    total: int | None = None
    message: str | None = None
    changed: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.video, self.result = self.folder / "video", self.folder / "result.zip"

    def describe(self) -> dict[str, Any]:
        """Return the progress as JSON."""
        return {name: getattr(self, name) for name in ("id", "state", "done", "total", "message")}

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

    async def add(self, chunks: AsyncIterator[bytes], account: Account, prompts: Any, options: Any) -> Job:
        """Take a file and start its job. Raises Busy, UserError."""
        self._forget_expired()
        if sum(job.account is account for job in self._jobs.values()) >= self._limits.videos:
            raise Busy(f"this token has {self._limits.videos} files here; delete one")
        job = Job(account, Path(tempfile.mkdtemp(dir=self._folder.name)), prompts, options)
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

    def _run(self, job: Job) -> None:
        job.become("running")
        try:
            with VideoReader(open_upload(job.video, NAME), 1, None) as video:
                if video.size[0] * video.size[1] > self._limits.pixels:
                    raise VideoError(f"frames of {video.size[1]}x{video.size[0]} are too large; scale the video down")
                job.total = video.count
                _Run(job, video, self._service).run()
            job.become("done")
        except Exception as error:
            if job.state != "cancelled":
                job.become("failed", self._service.explain(error))
        finally:
            with contextlib.suppress(OSError):
                job.video.unlink()


class _Run:
    """A job in work: its frames through a stream, its results into files."""

    def __init__(self, job: Job, video: VideoReader, service: Service) -> None:
        self._job, self._video, self._service = job, video, service
        self._deliveries: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._clicks = job.prompts if isinstance(job.prompts, dict) else {}
        self._texts: Any = None if self._clicks else job.prompts
        self._has_concepts = any(isinstance(prompt, Concept) for prompt in self._texts or ())
        self._stats = RunStats({})

    def run(self) -> None:
        """Compute all. Raises SamwiseRuntimeError."""
        service, folder, started = self._service, self._job.folder / "out", time.monotonic()
        labels = {number: prompt.label for number, prompt in enumerate(self._texts or (), 1)}
        given = {obj for by_object in self._clicks.values() for obj in by_object} or set(labels)
        objects = {} if self._has_concepts else {obj: obj for obj in sorted(given)}
        options = OutputOptions(labels, objects, overlay=False, concepts=self._has_concepts)
        stream = self._open()
        header = describe_run(service.engine, self._video)
        try:
            with Outputs(folder, self._video.size, self._video.fps, header, options) as outputs:
                self._feed(stream, outputs)
                self._stats.seconds = time.monotonic() - started
                summary = summarize_run(self._stats, labels, {}, complete=True)
                outputs.close(summary | {"notes": list(self._video.notes)})
        finally:
            stream.cancel()
        with zipfile.ZipFile(self._job.result, "w") as archive:
            archive.write(folder / RESULTS, RESULTS, zipfile.ZIP_DEFLATED)
            for mask in sorted((folder / MASKS).iterdir()):
                archive.write(mask, f"{MASKS}/{mask.name}")
        shutil.rmtree(folder)

    def _open(self) -> Stream:
        """Open the stream when there is room. Raises Busy after an hour."""
        end = time.monotonic() + 3600
        while True:
            try:
                return self._service.scheduler.open(self._texts, self._deliveries.put, **self._job.options)
            except Busy:
                if self._job.state == "cancelled" or self._service.is_draining or time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def _feed(self, stream: Stream, outputs: Outputs) -> None:
        for number, frame in enumerate(self._video):
            if number >= self._service.limits.video_frames:
                raise VideoError(f"the file has more than {number:,} frames; send a part of it")
            while not stream.put(frame, self._clicks.get(number), number, time=self._video.frame_time(number)):
                self._take(outputs, 0.05)
            while self._take(outputs, 0.0):
                pass
        stream.end()
        while not stream.is_over or not self._deliveries.empty():
            self._take(outputs, 0.5)

    def _take(self, outputs: Outputs, seconds: float) -> bool:
        """Write the next result; return whether there was one in time. Raises what ended the stream."""
        if self._job.state == "cancelled":
            raise UserError("cancelled")
        try:
            delivery = self._deliveries.get(seconds > 0, seconds or None)
        except queue.Empty:
            return False
        if delivery.error is not None:
            raise delivery.error
        if delivery.outcome is Outcome.END and self._service.is_draining:
            raise UserError(SHUTDOWN)
        if (result := delivery.result) is not None:
            name, seconds_shown = self._video.frame_name(result.frame_index), self._video.frame_time(result.frame_index)
            result = self._numbered(result)
            outputs.add(name, np.empty(0), result, seconds_shown)
            self._stats.count(result)
            self._job.done += 1
        return True

    def _numbered(self, result: Result) -> Result:
        """Return a result as the command has it: objects of concepts are numbered from 1, corners exclusive."""
        if not self._has_concepts:
            return result
        boxes = boxes_and_areas(result.masks)[0].astype(np.float32)
        return replace(result, object_ids=tuple(obj + 1 for obj in result.object_ids), boxes=boxes)
