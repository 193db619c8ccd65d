"""Times at which the frames of a video file are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

RESET_SECONDS = 1.0
"""Step back of the times from which on it certainly is a new start of the recorder's clock, and no disorder."""

MAX_DISORDER = 2
"""Number of frames in a row that may be early without a new start of the clock."""

MAX_GAP_SECONDS = 30 * 3600
"""Time between two frames from which on it counts as a new start of the clock, as in FFmpeg."""

MAX_STREAM_GAP_SECONDS = 3600
"""The same for containers of recorded streams, whose clocks may start anew."""

STREAMS = ("mpegts", "mpeg", "hls", "ogg")


class Clock:
    """Seconds from the first frame, by the presentation times of the frames; they never decrease.

    A frame without a time follows the previous one by its duration. AVI numbers packets in the order of decoding
    only; its frames get the times of their packets in that order, as in FFmpeg.

    Where the clock starts anew, the next frame follows the previous one. Up to two frames that are early are disorder,
    and are shown with the previous one. More may be either: the times go on from there, until they are again beyond
    those of the clock before.
    """

    def __init__(self, stream: VideoStream, fps: float) -> None:
        name = stream.container.format.name
        self._decoding_order = name == "avi"
        self._step = 1 / fps
        self._max_gap = max(MAX_STREAM_GAP_SECONDS if name in STREAMS else MAX_GAP_SECONDS, 10 * self._step)
        self._origin: float | None = None
        self._former: float | None = None  # origin before a step back that may be disorder
        self._last: float | None = None
        self._early = 0  # frames in a row that were early
        self.gaps: list[tuple[float, float]] = []
        """Times at which the clock started anew with a gap, and the seconds left out."""
        self.start = self.end = 0.0
        """Time of the first frame in the file, where its sound counts from; end of the last frame."""

    def seconds(self, frame: av.VideoFrame) -> float:
        """Return the time of the next frame of the file."""
        base = float(frame.time_base or 0)
        stamp = frame.dts if self._decoding_order else frame.pts
        duration = (frame.duration or 0) * base or self._step
        following = 0.0 if self._last is None else self._last + duration
        time = following
        if self._last is None and stamp is not None and not self._decoding_order:
            self.start = stamp * base
        if stamp is not None:
            time = self._place(stamp * base, following)
        self._last = max(time, self._last or 0.0)
        self.end = self._last + duration
        return self._last

    def _place(self, position: float, following: float) -> float:
        """Return the time of a frame by its position in the file, after the clock is set anew if that is due."""
        last = self._last or 0.0
        if self._origin is None:
            self._origin = position - following
        if self._former is not None and position - self._former > last + 1e-6:
            self._origin, self._former = self._former, None
        early, gap = last - (position - self._origin), position - self._origin - following
        if early > RESET_SECONDS or gap > self._max_gap:
            if gap > 0:
                self.gaps.append((following, gap))
            self._origin, self._former = position - following, None
        elif self._early == MAX_DISORDER and early > -1e-6:
            self._former = self._origin if self._former is None else self._former
            self._origin = position - following
        is_early = position - self._origin < last - (1e-6 if not self._early else -1e-6)
        self._early = self._early + 1 if is_early else 0
        return position - self._origin
