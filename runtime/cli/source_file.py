"""File of the source video, for what an overlay has of it: the end of its last frame and its sound."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import av
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.filter import Graph
    from av.video.stream import VideoStream

    Packet = av.Packet[AudioStream] | av.Packet[VideoStream]

COPIED = ("aac", "ac3", "alac", "eac3", "flac", "mp3", "mp3float", "opus")
"""Codecs that are copied: those that MP4 holds and players know."""

RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Sampling rates of AAC that are kept; others become 48 kHz."""


MAX_SILENCE = 3600
"""Longest gap, in seconds, that is filled with silence where sound is encoded."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A video file whose frames have been read. Errors are those of PyAV.

    path   the file
    start  time of the video's first frame in it, in seconds; times below count from there
    sound  whether its sound is wanted
    """

    path: Path
    start: float = 0.0
    sound: bool = True

    def open(self) -> InputContainer:
        """Open the file."""
        import av

        return av.open(str(self.path.absolute()))

    def video_end(self, source: InputContainer) -> float:
        """Return when the last frame ends, 0 if the file does not say it."""
        stream = source.streams.best("video")
        if stream is not None and stream.duration:
            return float(((stream.start_time or 0) + stream.duration) * (stream.time_base or 0)) - self.start
        return (source.duration or 0) / 1e6 if len(source.streams) == 1 else 0.0

    def add_sound(self, source: InputContainer, out: OutputContainer, end: float | None) -> Iterator[Packet]:
        """Add a stream for the sound to `out` and return its packets; none if the file has no sound.

        It is copied if MP4 holds it, else encoded as AAC. `end` is the time at which it stops, None: its own end.
        """
        stream = cast("AudioStream | None", source.streams.best("audio") if self.sound else None)
        if stream is None:
            return iter(())
        if stream.codec_context is None:
            raise ValueError("PyAV cannot decode its codec")
        if stream.codec_context.name in COPIED:
            return _limit(self._copy(source, stream, out.add_stream_from_template(stream)), end)
        rate = stream.rate if stream.rate in RATES else 48_000
        encoder = out.add_stream("aac", rate=rate, layout="mono" if stream.channels == 1 else "stereo")
        return _limit(self._encode(source, stream, encoder), end)

    def _copy(self, source: InputContainer, stream: AudioStream, copy: AudioStream) -> Iterator[Packet]:
        offset = round(self.start / (stream.time_base or 1))
        for packet in source.demux(stream):
            if packet.dts is None:  # the end
                continue
            packet.dts -= offset
            packet.pts = packet.dts if packet.pts is None else packet.pts - offset
            # a decoder needs the packet before the first one that is heard
            if packet.pts + 2 * (packet.duration or 0) > 0:
                packet.stream = copy
                yield packet

    def _encode(self, source: InputContainer, stream: AudioStream, encoder: AudioStream) -> Iterator[Packet]:
        offset = round(self.start / (stream.time_base or 1))
        graph = _resampler(stream, encoder)
        last = None
        for frame in _decode(source, stream):
            if last is not None and frame.time is not None and frame.time - last > MAX_SILENCE:
                raise ValueError(f"its times jump by {(frame.time - last) / 3600:.1f} hours")
            last = frame.time
            if frame.pts is not None:
                frame.pts -= offset
            graph.push(frame)
            yield from _drain(graph, encoder)
        graph.push(None)
        yield from _drain(graph, encoder)
        yield from encoder.encode(None)


def _decode(source: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame]:
    import av

    for packet in source.demux(stream):
        with contextlib.suppress(av.InvalidDataError):  # the gap that a damaged packet leaves becomes silence
            yield from packet.decode()


def _resampler(stream: AudioStream, encoder: AudioStream) -> Graph:
    """Make a filter that starts at 0 and fills gaps with silence, so that the sound stays with the video."""
    import av

    graph = av.filter.Graph()
    layout = f"sample_fmts=fltp:sample_rates={encoder.rate}:channel_layouts={encoder.layout.name}"
    nodes = (
        graph.add_abuffer(template=stream),
        graph.add("aresample", f"{encoder.rate}:async=1:first_pts=0"),
        graph.add("aformat", layout),
        graph.add("abuffersink"),
    )
    graph.link_nodes(*nodes).configure()
    return graph


def _drain(graph: Graph, encoder: AudioStream) -> Iterator[Packet]:
    import av

    while True:
        try:
            frame = graph.pull()
        except (BlockingIOError, av.EOFError):
            return
        yield from encoder.encode(cast("av.AudioFrame", frame))


def _limit(packets: Iterator[Packet], end: float | None) -> Iterator[Packet]:
    for packet in packets:
        if end is not None and seconds(packet) >= end:
            return
        yield packet


def seconds(packet: Packet) -> float:
    """Return when a packet is decoded."""
    return float((packet.dts or 0) * (packet.time_base or 0))
