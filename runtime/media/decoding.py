"""Choice of a container's video stream, and its decoding past damage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..errors import VideoError
from .source import Source

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

    OpenContainer = Callable[[], InputContainer]

KEY_FRAME_SECONDS = 10.0
"""Time before the end in which there is a key frame to begin from."""

AVI_DISORDER = 32
"""Number of packets within which the frame of a packet comes, more than any codec keeps back."""

TELLS_DAMAGE = ("mjpeg",)
"""Codecs without references between frames that pass damage over, unless they are told to end at it."""

PARSER_DELAY = 4
"""Packets by which the mark of a loss may be early: FFmpeg's parser passes on the packet before."""

SETTLED = 64
"""Frames after which one that is missing comes no more; at a new start of the clock, frames overtake others."""

MAX_PLACES = 5
"""Number of places with damage that a note names."""


def choose_stream(container: InputContainer, name: str) -> tuple[VideoStream, list[str]]:
    """Return the video stream to read and notes on the others: the default stream, the largest of several.

    Cover pictures and thumbnails are no video. Raises VideoError if there is no stream that can be decoded.
    """
    from av.stream import Disposition

    if container.format.name in ("tty", "ansi"):  # FFmpeg renders any text file as a video of its characters
        raise VideoError(f"{name}: a text file, not a video")
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        raise VideoError(f"{name}: no video in it, {_contents(container)}")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoError(f"{name}: the video is in a format that this build of PyAV cannot decode; convert it to H.264")
    chosen = max(decodable, key=lambda s: (bool(s.disposition & Disposition.default), s.width * s.height))
    chosen.thread_type = "AUTO"
    others = ", ".join(f"{s.index} ({_describe(s)})" for s in streams if s is not chosen)
    note = f"{name}: only video stream {chosen.index} ({_describe(chosen)}) is read; left out: {others}"
    return chosen, [note] if others else []


def demux(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet[VideoStream]]:
    """Yield the packets of a stream, with an empty one at the end."""
    while True:
        try:
            yield from container.demux(stream)
            return
        except IndexError:  # PyAV, once: a stream has begun within the file
            continue


def _contents(container: InputContainer) -> str:
    words = {"video": "a cover picture", "subtitle": "subtitles"}
    kinds = sorted({words.get(stream.type, stream.type) for stream in container.streams}, reverse=True)
    return f"only {' and '.join(kinds)}" if kinds else "it is damaged or cut short"


def _describe(stream: VideoStream) -> str:
    context = stream.codec_context
    return "unknown codec" if context is None else f"{context.name} {stream.width}x{stream.height}"


class Decoder:
    """Decodes a stream's packets in order, and leaves damaged ones out. `strict`: damage is an error.

    FFmpeg's threads of decoding lose the frames behind damage at the very end; those are decoded again from a second
    container, in one thread.
    """

    def __init__(self, stream: VideoStream, source: Source, open_container: OpenContainer, strict: bool) -> None:
        self._name, self._open_container, self._strict = source.name, open_container, strict
        self.stream, self._base = stream, float(stream.time_base or 0)
        self._context = _context(stream, source)
        # AVI numbers packets in the order of decoding, which is not that of the frames
        self._disorder = AVI_DISORDER if stream.container.format.name == "avi" else 0
        self._waiting: dict[int, None] = {}  # times of packets whose frames have not come
        self._missing: dict[int, int] = {}  # those given up, with the number of frames before them
        self._first: int | None = None
        self._origin: int | None = None
        self._packets = self.frames = self._errors = self._corrupt = 0
        self._suspects: list[tuple[int, int]] = []  # numbers and times of the last packets that may be incomplete
        self._lost: list[int] = []  # times of incomplete packets
        self._last: int | None = None
        self._interlaced = self._foreign = self.end_is_missing = False

    def decode(self, packet: av.Packet[VideoStream]) -> Iterator[av.VideoFrame]:
        """Yield the frames that this packet completes; an empty packet ends the stream."""
        if packet.size and not packet.is_discard and not _is_hidden(packet):
            self._packets += 1
            self._check_whole(packet)
            if packet.pts is not None:
                self._waiting[packet.pts] = None
                self._first = packet.pts if self._first is None else self._first
        yield from map(self._delivered, self._attempt(packet))
        if not packet.size:
            if self._waiting and not self._strict:
                yield from map(self._delivered, self._end_again())
            self._give_up(list(self._waiting), silent=self._packets <= self.frames)
            self._check_whole(None)
            self._refuse_damage(self.frames)

    def _check_whole(self, packet: av.Packet[VideoStream] | None) -> None:
        """Count packets of which parts were lost, as a transport stream tells; those of a joined file are no loss."""
        time = None if packet is None else packet.dts
        if time is not None and self._last is not None and time < self._last:
            self._suspects.clear()
        settled = self._packets - (0 if packet is None else PARSER_DELAY)
        lost = [at for number, at in self._suspects if number <= settled]
        self._suspects = self._suspects[len(lost) :]
        self._lost += lost
        self._last = time
        if packet is not None and packet.is_corrupt:
            self._suspects.append((self._packets, time if time is not None else 0))

    def _attempt(self, packet: av.Packet[VideoStream]) -> list[av.VideoFrame]:
        import av

        try:
            return self._context.decode(packet)
        except av.FFmpegError as error:
            if self._strict or isinstance(error, MemoryError):
                raise
            if frames := self._conceal(packet):
                return frames
            self._errors += 1
            self.end_is_missing = True
            return []

    def _conceal(self, packet: av.Packet[VideoStream]) -> list[av.VideoFrame]:
        """Decode a damaged picture of Motion JPEG as far as that is possible."""
        import av

        if self._context.name not in TELLS_DAMAGE or not packet.size:
            return []
        context: Any = av.CodecContext.create(self._context.name, "r")
        context.extradata = self._context.extradata
        with contextlib.suppress(av.FFmpegError):
            frames: list[av.VideoFrame] = context.decode(packet) or context.decode(None)
            self._corrupt += len(frames)
            return frames
        return []

    def _delivered(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Count a frame, and those missing before it."""
        if frame.pts is not None:
            self._origin = frame.pts if self._origin is None else self._origin
            self._foreign |= frame.pts not in self._waiting and frame.pts not in self._missing
            for times in (self._waiting, self._missing):
                times.pop(frame.pts, None)
            # no damage: a second field has no frame of its own; a clip may begin with frames that refer to none in it
            usual = frame.interlaced_frame or (self.frames == 0 and frame.pts == self._first)
            late = [time for time in self._waiting if time < frame.pts - self._disorder]
            self._give_up(late, silent=usual and not self._errors)
        self.frames += 1
        self._interlaced |= frame.interlaced_frame
        self._corrupt += bool(frame.is_corrupt)
        self.end_is_missing = False
        missing = any(count + SETTLED < self.frames for count in self._missing.values()) if self._strict else False
        if self._corrupt or self._lost or missing:
            self._refuse_damage(self.frames - 1)
        return frame

    def _refuse_damage(self, delivered: int) -> None:
        """Raise VideoError for the damage that is known, if `strict`."""
        if self._strict and (damage := self._damage()):
            raise VideoError(f"{self._name}: damaged or cut short after {delivered} frames ({damage[0]})")

    def _give_up(self, times: list[int], silent: bool) -> None:
        for time in times:
            del self._waiting[time]
            if not silent:
                self._missing[time] = self.frames
                self.end_is_missing = True

    def _end_again(self) -> list[av.VideoFrame]:
        """Decode the last frames that have not come again, in one thread."""
        import av

        found = []
        with contextlib.suppress(av.FFmpegError, OSError), self._open_container() as container:
            stream = container.streams[self.stream.index]
            stream.codec_context.thread_count = 1
            # some containers do not tell where key frames are
            start = min(self._waiting) - round(KEY_FRAME_SECONDS / (self._base or 1))
            container.seek(max(start, self._origin or 0), stream=stream)
            for packet in demux(container, stream):
                with contextlib.suppress(av.FFmpegError):
                    found += [frame for frame in stream.codec_context.decode(packet) if frame.pts in self._waiting]
        return found

    def notes(self) -> list[str]:
        """Return what is damaged or missing, for the user."""
        return [f"{self._name}: {damage}" for damage in self._damage()]

    def _damage(self) -> list[str]:
        notes, count = [], len(self._missing)
        if self._origin is None and not self._interlaced:  # without times, only the number is known
            count = max(0, self._packets - self.frames)
        if self._foreign and not self._errors:  # a decoder that gives frames times of its own
            count = 0
        if count or self._errors:
            groups = [list(group) for _, group in groupby(sorted(self._missing.items()), key=lambda item: item[1])]
            more = len(groups) - MAX_PLACES
            places = [*map(self._place, groups[:MAX_PLACES]), *[f"and at {more} more places"] * (more > 0)]
            frames = "1 frame" if count == 1 else f"{count or 'some'} frames"
            notes.append(f"damaged, {frames} missing{': ' * bool(places)}{', '.join(places)}")
        if self._corrupt:
            notes.append(f"{self._corrupt} of {self.frames} frames are damaged; masks there may be wrong")
        if self._lost:
            packets = "1 packet is" if len(self._lost) == 1 else f"{len(self._lost)} packets are"
            at = (self._lost[0] - (self._first or 0)) * self._base
            notes.append(f"{packets} incomplete, from {at:.2f} s on; frames there may be missing, and masks wrong")
        return notes

    def _place(self, group: list[tuple[int, int]]) -> str:
        """Say where frames are missing, given as (time, number of frames before)."""
        time, before = group[0]
        distance = time - (self._origin or 0)
        if before == 0 or distance < 0:
            return f"{len(group)} before the first"
        frame = f"near frame {distance}" if self._disorder else f"after frame {before - 1}"
        return f"{len(group)} {frame} (at {distance * self._base:.2f} s)"


def _context(stream: VideoStream, source: Source) -> VideoCodecContext:
    """Return the decoder of a stream. VP8 and VP9 with transparency need libvpx: FFmpeg's own decoders ignore it."""
    import av

    library = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    tags = {name.lower(): value for name, value in stream.metadata.items()}  # FFmpeg copies it as ALPHA_MODE
    if library is not None and tags.get("alpha_mode") == "1":
        try:
            return av.CodecContext.create(library, "r")  # type: ignore[return-value]
        except ValueError:  # unknown to this build
            source.notes.append(f"{source.name}: its transparency is ignored; this build of PyAV has no {library}")
    if stream.codec_context.name in TELLS_DAMAGE:
        stream.codec_context.options = {"err_detect": "explode"}
    return stream.codec_context


def _is_hidden(packet: av.Packet[VideoStream]) -> bool:
    """Tell whether a packet has no frame to show, only one to predict from: VP8 marks it in the first byte."""
    return packet.stream.codec_context.name == "vp8" and not bytes(packet)[0] & 0x10
