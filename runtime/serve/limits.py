"""Every limit of the server."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all of them, may use. Quotas are per token; without tokens all clients share one.

    message_bytes       one message of a WebSocket, and one picture over HTTP
    socket_bytes        what the kernel receives before the server reads it
    header_bytes        JSON of a message, and prompts over HTTP
    message_cost        bytes that a message counts at least, since a short one is work, too
    control_frames      pings and pongs of a connection in a second
    read_bytes          taken from a WebSocket at a time; these may be thousands of messages
    json_depth          nesting of that JSON
    tag_characters      length of a frame's tag
    pixels              one picture or video frame
    prompts             sentences or concepts of a stream
    objects             objects of a stream; over all streams the engine has its own limit
    option              largest number in `options` of a stream
    pending, pending_bytes  frames of a stream that wait for the engine
    results, result_bytes   results of a stream that wait to be sent; then it is held
    connections         open connections, over all clients
    streams, starts_per_second, frames_per_second, pixels_per_second, bytes_per_second  quotas of a token
    images              pictures over HTTP at a time, over all clients
    videos              video files that a token may have here
    video_bytes, video_frames, video_seconds  size of one; frames read of it; time until a finished one is deleted
    upload_rate         least bytes a second of an upload, when it has been slower for `idle_seconds`
    head_seconds        to send the head of a request, and to authenticate
    idle_seconds        without a message, without reading, without a byte of an upload
    session_seconds     length of a connection
    stuck_seconds       of one step of the engine, after which `/v2/health/live` fails
    drain_seconds       from SIGTERM on, for the frames that wait
    """

    message_bytes: int = 16 << 20
    socket_bytes: int = 1 << 20
    header_bytes: int = 256 << 10
    message_cost: int = 64 << 10
    control_frames: float = 1000
    read_bytes: int = 16 << 10
    json_depth: int = 8
    tag_characters: int = 100
    pixels: int = 4096 * 2304
    prompts: int = 16
    objects: int = 64
    option: int = 64
    pending: int = 16
    pending_bytes: int = 64 << 20
    results: int = 8
    result_bytes: int = 32 << 20
    connections: int = 256
    streams: int = 8
    starts_per_second: float = 10
    frames_per_second: float = 240
    pixels_per_second: float = 500e6
    bytes_per_second: float = 64e6
    images: int = 4
    videos: int = 4
    video_bytes: int = 2 << 30
    video_frames: int = 100_000
    video_seconds: float = 3600
    upload_rate: float = 10e3
    head_seconds: float = 10
    idle_seconds: float = 60
    session_seconds: float = 12 * 3600
    stuck_seconds: float = 120
    drain_seconds: float = 30


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
