"""Times at which the frames of a video file are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream

RESET_SECONDS = 1.0
"""Step back of the times from which on it counts as a new start of the recorder's clock, not as disorder."""


class Clock:
    """Seconds from the first frame, by the presentation times of the frames; they never decrease.

    A frame without a time follows the previous one by its duration. AVI numbers packets in the order of decoding
    only; its frames get the times of their packets in that order, as in FFmpeg.
    """

    def __init__(self, stream: VideoStream, fps: float) -> None:
        self._decoding_order = stream.container.format.name == "avi"
        self._step = 1 / fps
        self._origin: float | None = None
        self._last: float | None = None
        self.start = 0.0
        """Time of the first frame in the file, where its sound counts from."""

    def seconds(self, frame: av.VideoFrame) -> float:
        """Return the time of the next frame of the file."""
        base = float(frame.time_base or 0)
        stamp = frame.dts if self._decoding_order else frame.pts
        following = 0.0 if self._last is None else self._last + ((frame.duration or 0) * base or self._step)
        time = following
        if self._last is None and stamp is not None and not self._decoding_order:
            self.start = stamp * base
        if stamp is not None:
            if self._origin is None or stamp * base - self._origin < (self._last or 0.0) - RESET_SECONDS:
                self._origin = stamp * base - following
            time = stamp * base - self._origin
        self._last = max(time, self._last or 0.0)
        return self._last
