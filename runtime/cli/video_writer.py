"""Overlay video: H.264 in MP4 with the times, the pixel aspect and the sound of its source."""

from __future__ import annotations

import contextlib
import heapq
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InternalError, summarize
from .output_folder import PART, TOOL, UNFINISHED, mark_video
from .source_file import SourceFile, seconds
from .write_errors import is_disk_full, report_write_errors

if TYPE_CHECKING:
    import av
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

    from .source_file import Packet

TICKS = 90_000
"""Least number of ticks per second, 1000 for time lapses: times are rounded to less than 6 microseconds."""

MAX_DURATION = 2**31 - 2
"""Longest time that a frame of an MP4 may stay, in units of FFmpeg's; then it is repeated."""

LEAST_UNITS = 10_000
"""Units per second that FFmpeg's MP4 has at least: it doubles the ticks until they are as many."""

MIN_STAY = 0.001
"""Seconds for which a last frame is shown at least, for its end in a header to be believed."""

MIN_GOP, MAX_GOP = 10, 120
"""Bounds of the distance of key frames, one second; a killed run loses the frames after the last one."""

BT709, LIMITED_RANGE = 1, 1
"""Numbers of ITU-T H.273 and FFmpeg: primaries, transfer and matrix of BT.709; luma of 16 to 235."""


class VideoWriter:
    """Writes a video in fragments that play even if the process is killed, then an ordinary MP4 with the sound.

    Colours are those of BT.709 at every size, and tagged so. There are no B-frames: the first frame is shown at 0 even
    by players that ignore edit lists. `notes` are warnings to show at the end of the run.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: float,
        sample_aspect_ratio: Fraction = Fraction(1),
        source: SourceFile | None = None,
    ) -> None:
        """`size` (height, width), both even; `fps` for frames without a time, and for the length of the last one."""
        import av

        self.path, self.notes = path, list[str]()
        self._source, self._step = source, 1 / fps
        self._count, self._last = 0, -1
        self._frame: av.VideoFrame | None = None
        self._end: float | None = None
        rate = Fraction(fps).limit_denominator(1001) or Fraction(1, round(1 / fps))
        # a multiple of the rate, so that every frame of a constant rate lasts equally long; MP4 counts a frame's ticks
        # in 32 bits, and a frame of a time lapse may stay for days
        self._ticks = rate.numerator * -(-(TICKS if rate >= 1 else TICKS // 90) // rate.numerator)
        self._longest = MAX_DURATION >> max(0, math.ceil(math.log2(LEAST_UNITS / self._ticks)))
        with report_write_errors(path):
            self._container: OutputContainer | None = _open(
                path, "frag_keyframe+empty_moov+default_base_moof", UNFINISHED
            )
            try:
                self._stream = self._container.add_stream("libx264", rate=rate)
            except (av.FFmpegError, ValueError):
                raise InternalError("this build of PyAV has no libx264; pip install av, or use --no-overlay") from None
            self._configure(size, sample_aspect_ratio, gop=min(max(MIN_GOP, round(fps)), MAX_GOP))
            try:
                self._container.start_encoding()
            except BaseException:  # without its mark, the file would count as another's
                self.abandon()
                path.unlink(missing_ok=True)
                raise

    def _configure(self, size: tuple[int, int], sample_aspect_ratio: Fraction, gop: int) -> None:
        stream, context = self._stream, self._stream.codec_context
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        speed = {"preset": "veryfast", "rc-lookahead": str(min(20, gop))}
        stream.options = {"crf": "20", "g": str(gop), "bf": "0", **speed}
        context.time_base = Fraction(1, self._ticks)
        context.sample_aspect_ratio = sample_aspect_ratio
        context.color_primaries = context.color_trc = context.colorspace = BT709
        context.color_range = LIMITED_RANGE

    def add(self, image: np.ndarray, time: float | None = None) -> None:
        """Append one image, uint8 (*size, 3), shown at `time` in seconds; None: after the previous one at `fps`."""
        import av

        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
        seconds = self._count * self._step if time is None else time
        shown = max(self._last + 1, round(seconds * self._ticks))
        while self._frame is not None and shown - self._last > self._longest:
            self._show(self._frame, self._last + self._longest)
        self._show(frame, shown)
        self._frame = frame
        self._count += 1

    def _show(self, frame: av.VideoFrame, pts: int) -> None:
        self._last = frame.pts = pts
        frame.time_base = Fraction(1, self._ticks)
        self._write(frame)

    def close(self, whole: bool = False, end: float | None = None) -> None:
        """Finish the file. `whole`: its source was read to the end and ends it, at `end` if that is not None.

        Raises InternalError.
        """
        container = self._container
        if container is None:
            return
        self._end = end if whole else None
        try:
            if self._count:
                self._write(None)
        finally:
            self._container = None
            with report_write_errors(self.path):
                container.close()
        if self._count:
            with report_write_errors(self.path):
                self._finish(whole)

    def abandon(self) -> None:
        """Close the file unfinished; its complete fragments play."""
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(Exception):
                container.close()

    def _write(self, frame: av.VideoFrame | None) -> None:
        assert self._container is not None, "closed"
        with report_write_errors(self.path):
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    def _finish(self, whole: bool) -> None:
        """Turn the fragments into an ordinary MP4 with its index at the front, with the sound if that can be read."""
        import av

        part = self.path.with_suffix(PART)
        try:
            try:
                self._copy_to(part, self._source, whole)
            except (av.FFmpegError, OSError, ValueError) as error:
                if self._source is None or is_disk_full(error):
                    raise
                if self._source.sound:
                    self.notes.append(f"{self.path}: without sound: {self._source.path} fails ({summarize(error)})")
                self._copy_to(part, None, whole)
            mark_video(part)
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    def _copy_to(self, path: Path, source: SourceFile | None, whole: bool) -> None:
        import av

        with contextlib.ExitStack() as stack:
            fragments = stack.enter_context(av.open(str(self.path.absolute())))
            out = stack.enter_context(_open(path, "faststart", TOOL))
            video = out.add_stream_from_template(fragments.streams.video[0])
            video.time_base = Fraction(1, self._ticks)
            last = self._last / self._ticks
            end = last + self._step if self._end is None else max(self._end, last + 1 / self._ticks)
            sound: Iterator[Packet] = iter(())
            if source is not None:
                original = stack.enter_context(source.open())
                whole = whole and self._end is None
                source_end = source.video_end(original) if whole else 0.0
                # near the average rate, the difference is the error of a header
                if source_end > end + self._step or last + MIN_STAY < source_end < last + self._step / 2:
                    end = source_end
                sound = source.add_sound(original, out, None if whole else end)
            for packet in heapq.merge(_lasting(fragments, video, end), sound, key=seconds):
                out.mux(packet)


def _open(path: Path, flags: str, comment: str) -> OutputContainer:
    import av

    options = {"movflags": flags, "flush_packets": "1"}
    container = av.open(str(path.absolute()), "w", format="mp4", options=options)
    container.metadata["comment"] = comment
    return container


def _lasting(fragments: InputContainer, video: VideoStream, end: float) -> Iterator[Packet]:
    """Yield the packets of the fragments for the stream `video`; the last frame stays until `end`."""
    previous = None
    for packet in (p for p in fragments.demux(video=0) if p.dts is not None):
        if previous is not None:
            yield previous
        previous = packet
        packet.stream = video
    if previous is not None:
        previous.duration = min(max(1, round(end / (previous.time_base or 1)) - (previous.dts or 0)), MAX_DURATION)
        yield previous
