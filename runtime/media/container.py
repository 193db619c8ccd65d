"""Video files, network streams and cameras, decoded with PyAV.

Frames come in display orientation; frames with transparency are composited over black. PyAV is imported when a source
needs it.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import VideoError, hide_secrets, summarize
from .clock import Clock
from .image_files import check_size, composite_over_black
from .source import Frame, Source

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

    OpenContainer = Callable[[], InputContainer]

DEFAULT_FPS = 24.0
"""Frame rate assumed for a container that names none."""

RETRIES = 3
"""Number of times that a dropped camera or stream is reopened, after 1, 2 and 4 seconds, before it is an error."""

RETRY_SECONDS = 1.0
TIMEOUT_SECONDS = 10.0
"""Time without data after which a camera or network source counts as dropped."""


def open_video_file(path: Path, stride: int) -> Source:
    import av

    def open_container() -> InputContainer:
        # absolute: FFmpeg takes what precedes a colon for a protocol, and would open another file or a pipe
        return av.open(str(path.absolute()), options={"probesize": "20000000"})

    source = _pyav_source(str(path), open_container, stride, live=False)
    source.path, source.files = path, [path]
    return source


def open_url(url: str, stride: int) -> Source:
    import av

    name = hide_secrets(url)
    scheme = url.split(":", 1)[0].lower()
    options = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
    if scheme.startswith("http"):
        options = {"reconnect": "1", "reconnect_delay_max": "4"}

    def open_container() -> InputContainer:
        return av.open(url, options=options, timeout=(TIMEOUT_SECONDS, TIMEOUT_SECONDS))

    source = _pyav_source(name, open_container, stride, live=None if scheme.startswith("http") else scheme != "file")
    if scheme == "file":
        source.files = [Path(url[len("file:") :])]
    return source


def open_camera(number: int, stride: int) -> Source:
    if sys.platform == "darwin":
        return open_device(f"camera {number}", str(number), "avfoundation", stride)
    device = Path(f"/dev/video{number}")
    if not device.exists():
        found = (
            ", ".join(sorted((d.name[5:] for d in Path("/dev").glob("video*")), key=lambda n: (len(n), n))) or "none"
        )
        raise VideoError(f"camera {number}: no {device} on this machine (cameras found: {found})")
    return open_device(f"camera {number}", str(device), "v4l2", stride)


def open_device(name: str, device: str, kind: str, stride: int) -> Source:
    import av

    def open_container() -> InputContainer:
        return av.open(device, format=kind, timeout=(TIMEOUT_SECONDS, TIMEOUT_SECONDS))

    return _pyav_source(name, open_container, stride, live=True)


def _pyav_source(name: str, open_container: OpenContainer, stride: int, live: bool | None) -> Source:
    """Open a source with PyAV. `live` None: live if the container declares no duration."""
    import av

    try:
        container = open_container()
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{name}: {_open_error(error, bool(live))}") from None
    try:
        stream = _video_stream(container, name)
        check_size(stream.codec_context.height, stream.codec_context.width, name)
    except BaseException:
        container.close()
        raise
    live = not container.duration if live is None else live
    fps = _frame_rate(stream)
    count = 0 if live else stream.frames or round(fps * (container.duration or 0) / 1e6)
    source = Source(name, fps / stride, -(-count // stride) or None, iter(()), live=live)
    source.sample_aspect_ratio = Fraction(stream.sample_aspect_ratio or 1)
    if live:
        source.frames = _decode_live(source, container, open_container, stride)
    else:
        source.frames = _decode_file(source, container, stride)
    return source


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    if container.format.name in ("tty", "ansi"):  # FFmpeg renders any text file as a video of its characters
        raise VideoError(f"{name}: a text file, not a video")
    streams = [s for s in container.streams.video if "attached" not in str(getattr(s, "disposition", "")).lower()]
    if not streams:
        kinds = " and ".join(sorted({s.type for s in container.streams}))
        raise VideoError(f"{name}: no video in it, " + (f"only {kinds}" if kinds else "it is damaged or cut short"))
    if streams[0].codec_context is None:
        raise VideoError(f"{name}: the video is in a format that this build of PyAV cannot decode; convert it to H.264")
    streams[0].thread_type = "AUTO"
    return streams[0]


def _frame_rate(stream: VideoStream) -> float:
    """Return the frames per second by the coded stream where packets have no times, else as measured by FFmpeg."""
    declared = stream.codec_context.framerate if stream.start_time is None else None
    return float(declared or stream.average_rate or stream.guessed_rate or DEFAULT_FPS)


def _decode_file(source: Source, container: InputContainer, stride: int) -> Iterator[Frame]:
    """Decode a file. Frames that its header declares and that are missing raise VideoError after the others."""
    import av

    decoded = damaged = 0
    end = 0.0
    with container:
        stream = _video_stream(container, source.name)
        clock = Clock(stream, source.fps * stride)
        try:
            for packet in container.demux(stream):
                for frame in packet.decode():
                    damaged += bool(frame.is_corrupt)
                    end = frame.time if frame.time is not None else end
                    shown = clock.seconds(frame)
                    if decoded == 0:
                        source.start = clock.start
                    if decoded % stride == 0:
                        yield Frame(_to_array(frame, source.name), shown)
                    decoded += 1
        except (av.FFmpegError, OSError) as error:
            frames = f"{decoded} frame{'s' * (decoded != 1)}"
            raise VideoError(f"{source.name}: damaged or cut short after {frames} ({summarize(error)})") from None
        declared = _declared_seconds(container, stream)
    if decoded == 0:
        raise VideoError(f"{source.name}: no frame can be decoded; the file is damaged or cut short")
    if declared - end > max(0.5, 5 / float(stream.average_rate or DEFAULT_FPS)):
        where = f"at {end:.1f} of {declared:.1f} seconds, after {decoded} frames"
        raise VideoError(f"{source.name}: cut short: it ends {where}")
    if damaged:
        source.notes.append(f"{source.name}: {damaged} of {decoded} frames are damaged; masks there may be wrong")


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Return the video's length by its header; 0 where the header does not give that of the video alone."""
    tag = re.fullmatch(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d*)?)", stream.metadata.get("DURATION", ""))
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 and stream.frames else 0.0


def _decode_live(
    source: Source, container: InputContainer | None, open_container: OpenContainer, stride: int
) -> Iterator[Frame]:
    """Decode a camera or network stream until it is closed, and reopen it when it drops."""
    import av

    decoded = failures = 0
    first: float | None = None
    while True:
        try:
            if container is None:
                container = open_container()
            with container:
                for frame in _live_frames(container, source.name):
                    failures = 0
                    arrival = time.monotonic()
                    first = arrival if first is None else first
                    if decoded % stride == 0:
                        yield Frame(_to_array(frame, source.name), arrival - first)
                    decoded += 1
            reason = "it ended"
        except (av.FFmpegError, OSError) as error:
            reason = summarize(error)
        container = None
        failures += 1
        if failures > RETRIES:
            raise VideoError(
                f"{source.name}: dropped after {decoded} frames ({reason}) and did not come back "
                f"in {RETRIES} tries; check the cable, the address or the network"
            )
        time.sleep(RETRY_SECONDS * 2 ** (failures - 1))


def _live_frames(container: InputContainer, name: str) -> Iterator[av.VideoFrame]:
    """Decode frames and skip broken packets: a stream joined in its middle has them until the next key frame."""
    import av

    for packet in container.demux(_video_stream(container, name)):
        with contextlib.suppress(av.InvalidDataError):
            yield from packet.decode()


def _to_array(frame: av.VideoFrame, name: str) -> np.ndarray:
    check_size(frame.height, frame.width, name)
    if any(c.is_alpha for c in frame.format.components):
        array = composite_over_black(frame.to_ndarray(format="rgba"))
    else:
        array = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # PyAV and rot90 both count counter-clockwise
    return np.ascontiguousarray(np.rot90(array, turns))  # the rows of one-pixel-wide frames come with gaps


def _open_error(error: BaseException, live: bool) -> str:
    if live:
        return f"does not answer ({summarize(error)}); check the address, the cable or the network"
    if type(error).__name__ == "InvalidDataError":
        return "not a video, or damaged beyond reading (no valid header); copy or record it again"
    return f"cannot be opened ({summarize(error)})"
