"""Decoding of cameras and network streams, which may drop and come back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import VideoError, summarize
from ..results import Stamp
from .conversion import Converter
from .decoding import choose_stream, demux
from .source import Frame

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

    OpenContainer = Callable[[], InputContainer]

RETRIES = 3
"""Number of times that a dropped camera or stream is reopened before it is an error."""

RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 30.0
"""Time before the first try, which doubles with each one, and the longest."""


DEFAULT_FPS = 24.0
"""Frame rate assumed for a container that names none."""

TIMEOUT_SECONDS = 10.0
"""Time without data after which a camera or network source counts as dropped."""


def decode_live(
    name: str, container: InputContainer | None, open_container: OpenContainer, stride: int, retries: int = RETRIES
) -> Iterator[Frame]:
    """Decode a camera or network stream until it is closed, and reopen it when it drops.

    It is reopened after 1, 2, 4 ... seconds. Raises VideoError after `retries` times without a frame.
    """
    import av

    decoded = failures = 0
    first: float | None = None
    converter = Converter(name)
    while True:
        try:
            if container is None:
                container = open_container()
            with container:
                for frame, seconds in _live_frames(container, name):
                    failures = 0
                    arrival = time.monotonic()
                    first = arrival if first is None else first
                    if decoded % stride == 0:
                        yield Frame(converter.rgb(frame), Stamp(arrival - first, seconds, decoded))
                    decoded += 1
            reason = "it ended"
        except (av.FFmpegError, OSError) as error:
            reason = describe_stop(error)
        container = None
        failures += 1
        if failures > retries:
            raise VideoError(
                f"{name}: dropped after {decoded} frames ({reason}) and did not come back "
                f"in {retries} tries; check the cable, the address or the network"
            )
        time.sleep(min(RETRY_SECONDS * 2 ** (failures - 1), MAX_RETRY_SECONDS))


def describe_stop(error: BaseException) -> str:
    """Say in a few words why a live source gives nothing."""
    import av

    return f"no data for {TIMEOUT_SECONDS:g} seconds" if isinstance(error, av.error.ExitError) else summarize(error)


def _live_frames(container: InputContainer, name: str) -> Iterator[tuple[av.VideoFrame, float | None]]:
    """Decode frames, with their times, and skip broken packets: a stream joined in its middle has them until the next
    key frame.
    """
    import av

    stream, _ = choose_stream(container, name)
    stream.thread_type = "SLICE"  # threads that take a frame each keep as many frames back as there are cores
    seconds = None if stream.start_time is None else float(stream.start_time * (stream.time_base or 0))
    for packet in demux(container, stream):
        with contextlib.suppress(av.InvalidDataError):
            for frame in packet.decode():
                if frame.pts is None and seconds is not None:
                    # FFmpeg loses the time of the first frame over RTSP where its parts came one by one
                    yield frame, max(0.0, seconds - 1 / float(stream.average_rate or DEFAULT_FPS))
                else:
                    yield frame, frame.time
                seconds = None
