"""Every limit of the server."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all of them, may use. Quotas are per token; without tokens all clients share one."""

    message_bytes: int = 16 << 20  # one message of a WebSocket, and one picture over HTTP
    socket_bytes: int = 1 << 20  # what the kernel receives before the server reads it
    read_bytes: int = 16 << 10  # taken from a WebSocket at a time; these may be thousands of messages
    header_bytes: int = 256 << 10  # JSON of a message, and prompts over HTTP
    json_depth: int = 8  # nesting of that JSON
    tag_characters: int = 100  # length of a frame's tag
    control_frames: float = 1000  # pings and pongs of a connection in a second
    pixels: int = 4096 * 2304  # one picture or video frame

    prompts: int = 16  # sentences or concepts of a stream
    objects: int = 64  # objects of a stream; over all streams the engine has its own limit
    option: int = 64  # largest number in `options` of a stream
    pending: int = 16  # frames of a stream that wait for the engine
    pending_bytes: int = 64 << 20
    results: int = 8  # results of a stream that wait to be sent; then it is held
    result_bytes: int = 32 << 20

    connections: int = 256  # open connections, over all clients
    images: int = 4  # pictures over HTTP at a time, over all clients
    streams: int = 8  # of a token, like the quotas that follow
    starts_per_second: float = 10
    frames_per_second: float = 240
    pixels_per_second: float = 500e6
    bytes_per_second: float = 64e6
    message_cost: int = 64 << 10  # bytes that a message counts at least, since a short one is work, too
    videos: int = 4  # video files that a token may have here
    video_bytes: int = 2 << 30  # of one
    video_frames: int = 100_000  # read of one
    video_seconds: float = 3600  # until a finished one is deleted
    upload_rate: float = 10e3  # least bytes a second of an upload, when it has been slower for `idle_seconds`

    head_seconds: float = 10  # to send the head of a request, and to authenticate
    idle_seconds: float = 60  # without a message, without reading, without a byte of an upload
    session_seconds: float = 12 * 3600  # length of a connection
    stuck_seconds: float = 120  # of one step of the engine, after which `/v2/health/live` fails
    drain_seconds: float = 30  # from SIGTERM on, for the frames that wait


class Rate:
    """A quota per second. Who takes more than that waits; a second's worth may come at once."""

    def __init__(self, per_second: float) -> None:
        self._per_second, self._level, self._time = per_second, 0.0, time.monotonic()

    def take(self, amount: float) -> float:
        """Count an amount; return the seconds to wait before the next."""
        now = time.monotonic()
        self._level = max(0.0, self._level - (now - self._time) * self._per_second) + amount
        self._time = now
        return max(0.0, self._level / self._per_second - 1.0)
