"""Frames of a text session from their arrival to their results, a clip at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ...device.base import Array
from ...results import Result
from .clip_encoder import ClipEncoder, ClipEncoding
from .state import TextTrack


class Clip:
    """A clip that fills up, is encoded with every prompt, and is decoded frame by frame; then the next one, in the same
    arrays.
    """

    def __init__(self, encoder: ClipEncoder, tracks: Sequence[TextTrack], window: int) -> None:
        self._encoder, self._tracks, self._window = encoder, tracks, window
        self.arrays, self._graphs = encoder.new_clip(), encoder.new_graphs(len(tracks))
        self._waiting: list[float | None] = []
        """Times of the frames in the clip that fills up."""
        self._encoding: ClipEncoding | None = None
        """The clip while it is not encoded."""
        self._undecoded: deque[tuple[int, float | None]] = deque()
        """Offsets and times of its frames that are not decoded yet."""
        self._results: deque[Result] = deque()
        """Its results that were computed before they were taken."""

    def __len__(self) -> int:
        """Number of frames that have no result yet."""
        return len(self._waiting) + len(self._undecoded)

    @property
    def is_full(self) -> bool:
        """Whether the clip is complete and can begin."""
        return len(self._waiting) == self._window

    @property
    def is_computed(self) -> bool:
        """Whether the clip that has begun is at its end, so that its arrays can take frames."""
        return not self._undecoded

    @property
    def is_encoded(self) -> bool:
        """Whether a frame can be decoded."""
        return self._encoding is None and bool(self._undecoded)

    @property
    def next_offset(self) -> int:
        """Offset of the frame that is decoded next."""
        return self._undecoded[0][0]

    @property
    def pixels(self) -> Array:
        """Array (3, I, I) of the next frame."""
        return self.arrays["pixels"][len(self._waiting)]

    def add(self, time: float | None) -> None:
        """Take the frame in `pixels`."""
        self._encoder.encode_frame(self.arrays, len(self._waiting), self._graphs)
        self._waiting.append(time)

    def begin(self) -> deque[Result]:
        """Make a clip of the frames that wait, complete or not, and return where its results go."""
        if not self._waiting:
            return deque()
        self._results = deque()  # an iteration over the clip before this one keeps its own
        self._encoding = self._encoder.begin(self.arrays, self._tracks, len(self._waiting), self._graphs)
        self._undecoded.extend(enumerate(self._waiting))
        self._waiting = []
        return self._results

    def advance(self, decode: Callable[[float | None], Result]) -> None:
        """Run one stage of the encoding, or `decode` the next frame, by its time."""
        if self._encoding is None:
            self._results.append(decode(self._undecoded[0][1]))
            self._undecoded.popleft()
            return
        self._encoder.advance(self._encoding)
        if self._encoding.is_done:
            self._encoding = None

    def has_more(self, results: deque[Result]) -> bool:
        """Tell whether the clip whose results go there has more."""
        return bool(results) or (results is self._results and bool(self._undecoded))

    def stop(self) -> None:
        """Let the encoder go on with other clips."""
        self._encoding = None
