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
                for frame in _live_frames(container, name):
                    failures = 0
                    arrival = time.monotonic()
                    first = arrival if first is None else first
                    if decoded % stride == 0:
                        yield Frame(converter.rgb(frame), Stamp(arrival - first, frame.time, decoded))
                    decoded += 1
            reason = "it ended"
        except (av.FFmpegError, OSError) as error:
            reason = summarize(error)
        container = None
        failures += 1
        if failures > retries:
            raise VideoError(
                f"{name}: dropped after {decoded} frames ({reason}) and did not come back "
                f"in {retries} tries; check the cable, the address or the network"
            )
        time.sleep(min(RETRY_SECONDS * 2 ** (failures - 1), MAX_RETRY_SECONDS))


def _live_frames(container: InputContainer, name: str) -> Iterator[av.VideoFrame]:
    """Decode frames and skip broken packets: a stream joined in its middle has them until the next key frame."""
    import av

    stream, _ = choose_stream(container, name)
    for packet in demux(container, stream):
        with contextlib.suppress(av.InvalidDataError):
            yield from packet.decode()
