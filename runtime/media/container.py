"""Video files, network streams and cameras, decoded with PyAV.

Frames come in display orientation; frames with transparency are composited over black. PyAV is imported when a source
needs it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..bundle.placeholder import describe_unreadable
from ..errors import VideoError, hide_secrets, summarize
from ..results import Stamp
from .clock import Clock
from .completeness import ends_within_part, joined_at, missing_seconds
from .conversion import Converter
from .decoding import Decoder, choose_stream, demux
from .image_files import check_size
from .live import DEFAULT_FPS, RETRIES, TIMEOUT_SECONDS, decode_live, describe_stop
from .playlists import address_files, playlist_files
from .source import Frame, Source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    OpenContainer = Callable[[], InputContainer]

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""Demuxers of FFmpeg for files of strangers: none that reads another file."""

TIMEOUTS = TIMEOUT_SECONDS, TIMEOUT_SECONDS
"""Times without data after which opening a camera or network source, and reading from it, fail."""


def open_video_file(path: Path, stride: int, strict: bool = False) -> Source:
    """Open a video file. `strict`: damage is an error, and not left out and noted."""
    source = _pyav_source(str(path), partial(_open_file, path), stride, False, strict, path)
    source.files = [path, *playlist_files(path)]
    return source


def open_upload(path: Path, name: str) -> Source:
    """Open a video file that anybody may have sent: a real container, and nothing that it refers to."""
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    return _pyav_source(name, partial(_open_file, path, options), 1, False, path=path)


def _open_file(path: Path, options: Mapping[str, str] = MappingProxyType({})) -> InputContainer:
    import av

    # absolute: FFmpeg takes what precedes a colon for a protocol, and would open another file or a pipe
    # container_options: PyAV before 18 crashes at damaged files that are opened with `options`
    return av.open(str(path.absolute()), container_options={"probesize": "20000000", **options})


def decode_from(path: Path, seconds: float, start: float) -> Iterator[Frame]:
    """Decode a video file from the key frame before a time on, as far as that is possible without an error.

    Times count from `start`, the time of the first frame in the file. Frames right after the key frame may be wrong,
    because they need others before it.
    """
    import av

    source = Source(str(path), DEFAULT_FPS, None, iter(()))
    converter = Converter(source.name)
    with contextlib.suppress(av.FFmpegError, OSError), _open_file(path) as container:
        stream, _ = choose_stream(container, source.name)
        base = float(stream.time_base or 0)
        decoder = Decoder(stream, source, partial(_open_file, path), strict=False)
        container.seek(round((start + seconds) / base), stream=stream)
        for packet in demux(container, stream):
            for frame in decoder.decode(packet):
                if frame.pts is not None:
                    yield Frame(converter.rgb(frame), Stamp(frame.pts * base - start))


def open_url(url: str, stride: int, strict: bool = False, retries: int = RETRIES) -> Source:
    """Open a network address: a stream, or a file on a server, for which `strict` counts."""
    import av

    name = hide_secrets(url)
    scheme = url.split(":", 1)[0].lower()
    options = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
    if scheme.startswith("http"):
        options = {"reconnect": "1", "reconnect_delay_max": "4"}

    def open_container() -> InputContainer:
        return av.open(url, container_options=options, timeout=TIMEOUTS)

    files = address_files(url)
    live = None if scheme.startswith("http") else files is None
    source = _pyav_source(name, open_container, stride, live, strict, retries=retries)
    source.files = files or ()
    return source


def open_camera(number: int, stride: int, retries: int = RETRIES) -> Source:
    if sys.platform == "darwin":
        return open_device(f"camera {number}", str(number), "avfoundation", stride, retries)
    device = Path(f"/dev/video{number}")
    if not device.exists():
        found = sorted((d.name[5:] for d in Path("/dev").glob("video*")), key=lambda n: (len(n), n))
        raise VideoError(f"camera {number}: no {device} on this machine (cameras found: {', '.join(found) or 'none'})")
    return open_device(f"camera {number}", str(device), "v4l2", stride, retries)


def open_device(name: str, device: str, kind: str, stride: int, retries: int = RETRIES) -> Source:
    import av

    def open_container() -> InputContainer:
        return av.open(device, format=kind, timeout=TIMEOUTS)

    return _pyav_source(name, open_container, stride, live=True, retries=retries)


def _pyav_source(
    name: str,
    open_container: OpenContainer,
    stride: int,
    live: bool | None,
    strict: bool = False,
    path: Path | None = None,
    retries: int = RETRIES,
) -> Source:
    """Open a source with PyAV. `live` None: live if the container declares no duration."""
    import av

    try:
        container = open_container()
    except (av.FFmpegError, OSError, ValueError) as error:
        what = describe_unreadable(path) if path else None
        raise VideoError(f"{name}: {what or _open_error(error, bool(live))}") from None
    try:
        stream, notes = choose_stream(container, name)
        if stream.width and stream.height:  # otherwise the first frame tells them
            check_size(stream.height, stream.width, name)
    except BaseException:
        container.close()
        raise
    live = not container.duration if live is None else live
    fps = _frame_rate(stream)
    count = 0 if live else stream.frames or round(fps * (container.duration or 0) / 1e6)
    source = Source(name, fps / stride, -(-count // stride) or None, iter(()), live=live, notes=notes, path=path)
    if live:
        source.frames = decode_live(source.name, container, open_container, stride, retries)
    else:
        source.frames = _decode_file(source, container, Decoder(stream, source, open_container, strict), stride)
    return source


def _frame_rate(stream: VideoStream) -> float:
    """Return the frames per second by the coded stream where packets have no times, else as measured by FFmpeg."""
    declared = stream.codec_context.framerate if stream.start_time is None else None
    return float(declared or stream.average_rate or stream.guessed_rate or DEFAULT_FPS)


def _decode_file(source: Source, container: InputContainer, decoder: Decoder, stride: int) -> Iterator[Frame]:
    """Decode a file. If it is cut short, VideoError follows the frames that are there."""
    import av

    name, stream = source.name, decoder.stream
    clock, converter, end = Clock(stream, source.fps * stride), Converter(name), 0.0
    with container:
        try:
            for packet in demux(container, stream):
                for frame in decoder.decode(packet):
                    shown = clock.seconds(frame)
                    if frame.time is not None:
                        end = frame.time + (frame.duration or 0) * float(frame.time_base or 0)
                    if (decoder.frames - 1) % stride:
                        continue
                    rgb = converter.rgb(frame)
                    if decoder.frames == 1:
                        source.start, source.sample_aspect_ratio = clock.start, converter.aspect_ratio(stream)
                    yield Frame(rgb, Stamp(shown, frame.time))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{name}: damaged or cut short after {decoder.frames} frames ({summarize(error)})"
            ) from None
        finally:
            source.notes += decoder.notes() + _gap_notes(name, clock)
        declared, missing = missing_seconds(source.path, container, stream, end, decoder.end_is_missing)
    if decoder.frames == 0:
        raise VideoError(f"{name}: no frame can be decoded; the file is damaged or cut short")
    if missing:
        where = f"at {end:.1f} of {declared:.1f} seconds, after {decoder.frames} frames"
        raise VideoError(f"{name}: cut short: it ends {where}")
    if source.path is not None and (joined := joined_at(source.path)) is not None:
        source.notes.append(f"{name}: another video begins at byte {joined:,} and is not read; split the file there")
    if source.path is None or clock.gaps:
        source.end = clock.end
    if source.path is not None and ends_within_part(source.path):
        raise VideoError(f"{name}: cut short: it ends within a part of the file, after {decoder.frames} frames")


def _gap_notes(name: str, clock: Clock) -> list[str]:
    if not clock.gaps:
        return []
    time, gap = clock.gaps[0]
    more = f", and at {len(clock.gaps) - 1} more places" if clock.gaps[1:] else ""
    return [
        f"{name}: the times jump by {gap / 3600:.1f} hours at {time:.2f} s{more}; counted as a new start of the clock"
    ]


def _open_error(error: BaseException, live: bool) -> str:
    if live or type(error).__name__ == "ExitError":  # it was waited for long enough
        return f"does not answer ({describe_stop(error)}); check the address, the cable or the network"
    if type(error).__name__ == "InvalidDataError":
        return "not a video, or damaged beyond reading (no valid header); copy or record it again"
    if type(error).__name__ == "EOFError":
        return "cut short, before the end of what describes its frames; copy or record it again"
    return f"cannot be opened ({summarize(error)})"
