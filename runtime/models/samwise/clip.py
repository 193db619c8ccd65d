"""Frames of a text session from their arrival to their results: a clip at a time, or each frame at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ...device.base import Array
from ...device.graphs import GraphCache
from ...results import NO_STAMP, Stamp
from .clip_encoder import ClipEncoder, ClipEncoding
from .state import TextTrack


@dataclass(frozen=True, slots=True)
class PendingFrame:
    """A frame that is to be decoded: its number in the video, its place in the arrays of the clip, its stamp.

    is_shown  whether it has a result; else it is decoded again, for the memory of those behind it
    is_still  whether it is decoded as the first frame of a video, without a memory
    """

    number: int
    offset: int
    stamp: Stamp
    is_shown: bool = True
    is_still: bool = False


class Clip:
    """A clip that fills up, is encoded with every prompt, and is decoded frame by frame; then the next one, in the same
    arrays.
    """

    runs_ahead = False
    """Whether it is encoded beside the decoding of the clip in front of it."""

    stills = False
    """Whether a clip of one frame is decoded without a memory, as the official code does."""

    encodes_at_once = False
    """Whether no frame waits for the next one."""

    def __init__(
        self, encoder: ClipEncoder, tracks: Sequence[TextTrack], window: int, graphs: GraphCache | None = None
    ) -> None:
        """`graphs`: on the arrays of the clip; None: those that sessions share."""
        self._encoder, self._tracks, self._window = encoder, tracks, window
        self.arrays, self._graphs = encoder.frames.new_maps(window), graphs
        self.decoded = self.arrays
        """Arrays that frames are decoded with."""
        self.num_frames = 0
        """Frames taken so far."""
        self._unencoded: dict[int, Callable[[Array], None]] = {}
        """Place of a frame that waits for the first stage, to be encoded side by side with the next ones -> what writes
        its pixels."""
        self._waiting: list[Stamp] = []
        """Times of the frames in the clip that fills up."""
        self._encoding: ClipEncoding | None = None
        """The clip while it is not encoded."""
        self._undecoded: deque[PendingFrame] = deque()
        """Its frames that are not decoded yet."""

    @property
    def is_empty(self) -> bool:
        """Whether no frame waits for `begin`."""
        return not self._waiting

    @property
    def is_full(self) -> bool:
        """Whether the clip is complete and can begin."""
        return len(self._waiting) == self._window

    @property
    def is_computed(self) -> bool:
        """Whether the clip that has begun is at its end, so that its arrays can take frames."""
        return self._encoding is None and not self._undecoded

    @property
    def is_encoded(self) -> bool:
        """Whether a frame can be decoded."""
        return self._encoding is None and bool(self._undecoded)

    @property
    def next_frame(self) -> PendingFrame:
        """The frame that is decoded next."""
        return self._undecoded[0]

    @property
    def frame_behind(self) -> PendingFrame | None:
        """The frame of the clip that is decoded after the next one."""
        return self._undecoded[1] if len(self._undecoded) > 1 else None

    def _make_room(self) -> None:
        """Let the arrays of the next frame be written to."""

    @property
    def _offset(self) -> int:
        """Place of the next frame in the arrays."""
        return len(self._waiting)

    def add(
        self,
        frame: Array,
        preprocess: Callable[[Array, Array], None],
        stamp: Stamp,
        is_shared: bool = False,
        encoded: Mapping[str, Array] | None = None,
    ) -> Mapping[str, Array]:
        """Take a frame, whose pixels `preprocess(frame, pixels)` writes, or that another clip has `encoded`; return its
        arrays for other clips, which read them only if it `is_shared`."""
        if encoded is not None:
            self._encoder.frames.copy(encoded, self.arrays, self._offset)
        else:
            at_once = is_shared or self.encodes_at_once or len(self._waiting) == self._window - 1
            waits = not at_once and len(self._unencoded) + 1 < self._encoder.frames.num_beside()
            # the caller may write over a frame that waits
            self._make_room()
            write = partial(preprocess, frame.copy() if waits else frame)
            frames: dict[int, Callable[[Array], None]] = {**self._unencoded, self._offset: write}
            if not waits:
                self._encoder.frames.encode(self.arrays, frames, self._graphs)
            self._unencoded = frames if waits else {}
        taken = {name: array[self._offset] for name, array in self.arrays.items()}
        self._waiting.append(stamp)
        self.num_frames += 1
        return taken

    def begin(self) -> None:
        """Make a clip of the frames that wait, complete or not."""
        if not self._waiting:
            return
        self._encoder.frames.encode(self.arrays, self._unencoded, self._graphs)
        self._unencoded = {}
        self._encoding, frames = self._begin(self._waiting)
        self._undecoded.extend(frames)
        self._waiting = []

    def _begin(self, stamps: Sequence[Stamp]) -> tuple[ClipEncoding, list[PendingFrame]]:
        """Begin to encode the frames that wait; return the frames to decode."""
        length = len(stamps)
        encoding = self._encoder.begin(self.arrays, self._tracks, length, self._graphs)
        first = self.num_frames - length
        is_still = self.stills and length == 1
        return encoding, [PendingFrame(first + i, i, stamp, is_still=is_still) for i, stamp in enumerate(stamps)]

    def advance(self) -> None:
        """Run one stage of the encoding, unless it is at its end."""
        if self._encoding is None:
            return
        self._encoder.advance(self._encoding)
        if self._encoding.is_done:
            self._encoding = None

    def forget_frame(self) -> None:
        """Leave the next frame behind: it is decoded."""
        self._undecoded.popleft()

    def stop(self) -> None:
        """Let the encoder go on with other clips."""
        self._encoding = None


class AheadClip(Clip):
    """Every clip is encoded beside the decoding of the one in front of it, so that its results come a clip later.

    It is encoded in arrays of its own, and copied from there when the one in front of it is decoded.
    """

    runs_ahead = True
    encodes_at_once = True

    def __init__(self, encoder: ClipEncoder, tracks: Sequence[TextTrack], window: int) -> None:
        super().__init__(encoder, tracks, window, encoder.new_graphs(len(tracks), beside=True))
        self._device = encoder.device
        self.arrays["pixels"] = encoder.frames.new_pixels(window)
        self.decoded = self._like({"high_res_0": self.arrays["high_res_0"]})
        for track in tracks:
            inputs = ("text_0", "verb")
            track.encoded = self._like({name: a for name, a in track.features.items() if name not in inputs})
        self._encoded: list[PendingFrame] = []
        """Frames of the clip that is in the arrays, encoded or about to be."""
        self._ready: list[PendingFrame] = []
        """Frames of the clip that can be decoded next."""

    def _like(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {name: self._device.empty(array.shape, array.dtype.name) for name, array in arrays.items()}

    @property
    def is_empty(self) -> bool:
        return not (self._waiting or self._encoded or self._ready)

    def _make_room(self) -> None:
        self._hand_over()

    def _hand_over(self) -> None:
        """Enqueue copies of the encoded clip, if it is not copied, to where it is decoded, behind the second stream."""
        if not self._encoded:
            return
        self._device.join()
        for source, to in ((self.arrays, self.decoded), *((t.encoded, t.features) for t in self._tracks)):
            for name in to.keys() & source.keys():
                self._device.copy(source[name], to[name])
        self._ready, self._encoded = self._encoded, []

    def begin(self) -> None:
        if not self.is_computed:
            return  # an iteration over its results was left
        self._hand_over()
        self._undecoded.extend(self._ready)
        self._ready = []
        if self._waiting:
            self._encoding, self._encoded = self._begin(self._waiting)
            self._waiting = []

    def stop(self) -> None:
        super().stop()
        self._device.join()  # memory is given back in the order of the stream


class RollingClip(Clip):
    """Low latency: every frame is the last one of a clip of the `window` latest frames, and has its result at once.

    The first frames of a video are encoded as whole clips of 1, 2, ... `window` frames, and the frames before the
    newest one are decoded again: what they showed was a guess with less evidence, and memory would keep it. From then
    on only the newest frame is computed, and of those before it the maps that `KeptMaps` holds are read.
    """

    encodes_at_once = True

    def __init__(self, encoder: ClipEncoder, tracks: Sequence[TextTrack], window: int) -> None:
        super().__init__(encoder, tracks, window)
        self._steps = encoder.new_graphs(len(tracks))

    @property
    def is_full(self) -> bool:
        return bool(self._waiting)

    @property
    def _offset(self) -> int:
        return self.num_frames if self.num_frames < self._window else 0

    def _begin(self, stamps: Sequence[Stamp]) -> tuple[ClipEncoding, list[PendingFrame]]:
        last, (stamp,) = self.num_frames - 1, stamps
        if last >= self._window:
            step = self._encoder.begin_step(self.arrays, self._tracks, last, self._steps)
            return step, [PendingFrame(last, 0, stamp)]
        for track in self._tracks:
            track.restart()
        encoding = self._encoder.begin(self.arrays, self._tracks, last + 1, keep=last + 1 == self._window)
        return encoding, [*(PendingFrame(i, i, NO_STAMP, False) for i in range(last)), PendingFrame(last, last, stamp)]
