"""Reader of frames from any kind of source, with decoding in a background thread.

    with open_video("clip.mp4", stride=2) as video:
        print(video.name, video.fps, video.size, video.count)
        for frame in video:            # uint8 RGB (H, W, 3)
            ...

The thread decodes into a short queue, so that decoding overlaps inference. It ends with the iteration, or when the
reader is closed or garbage-collected. `video_sources.py` opens the kinds of sources.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterator

import numpy as np

from ..errors import VideoError
from ..results import NO_STAMP, Stamp
from .decoder_thread import DecoderThread, close_frames
from .frame_names import number_name
from .live import RETRIES
from .source import Frame, Source
from .video_sources import VideoSource, open_source

QUEUE_FRAMES = 8
QUEUE_BYTES = 256 << 20
"""Capacity of the queue: at most 8 frames, and fewer if they are so large that they exceed the bytes."""

LIVE_TIMES = 1000
"""Number of frames of a live source whose times are kept."""

DROP = ("latest", "oldest", "none")
"""Values of `open_video`'s option `drop`."""


class VideoReader:
    """An open video; iterate over it once.

    name      name for messages
    fps       frames per second after the stride; an estimate for some files
    size      (height, width)
    count     number of frames to come; None for a camera
    count_is_exact  False where `count` is what a header promises: more or fewer frames may come; 1 is always exact.
            Images that cannot be read are left out, and counted
    max_count  number of frames that is not exceeded, for certain; None if unknown
    live      a camera or network stream, of which frames may be dropped
    dropped   number of dropped frames so far
    notes     warnings to show at the end of the run
    names     names of the pictures that are the frames, before the stride; None for other sources
    path      the video file, for what else is in it, such as sound; None for pictures, cameras and addresses
    start     time of the first frame in that file, in seconds
    end       end of the last frame, in seconds from the first one, once all are read; None if unknown, or as in `path`
    files     the files that it reads; none for cameras and addresses
    peek      returns the next frames that are decoded by now, without delivering them; None at the end, and where
            frames may be dropped
    sample_aspect_ratio  width of a pixel by its height, as shown

    Iteration raises VideoError when the source is damaged or changes its size, after the frames before that point.
    """

    def __init__(self, source: Source, stride: int, max_frames: int | None, drop: str | None = None) -> None:
        self.name, self.fps, self.live, self.notes = source.name, source.fps, source.live, source.notes
        self.stride = stride
        self.files = source.files
        self.names = source.names
        self._delivered, self._left_out, self._source = 0, source.left_out, source
        self._stamps: deque[Stamp] = deque(maxlen=LIVE_TIMES if source.live else None)
        first = next(source.frames, None)
        if first is None:
            raise VideoError(f"{self.name}: no frame in it")
        frames = _and_rest(source, first)
        limits = [n for n in (source.count, max_frames) if n is not None]
        self.count = min(limits) if limits else None
        self._count_is_exact = source.count_is_exact or max_frames == 1
        self.max_count = self.count if source.count_is_exact else max_frames
        self.path, self.start, self.sample_aspect_ratio = source.path, source.start, source.sample_aspect_ratio
        self.size: tuple[int, int] = first.array.shape[:2]
        drop = drop or ("oldest" if source.live else "none")
        depth = 1 if drop == "latest" else max(1, min(QUEUE_FRAMES, QUEUE_BYTES // first.array.nbytes))
        frames = itertools.islice(_same_size(source.name, frames), max_frames)
        self._decoder = DecoderThread(source, frames, depth, drops=drop != "none")
        self.peek = self._decoder.peek
        # The thread references the decoder and not this object, so that collecting this object ends the thread.
        weakref.finalize(self, self._decoder.stop)

    @property
    def count_is_exact(self) -> bool:
        return self._count_is_exact and not self._left_out

    @property
    def end(self) -> float | None:
        return self._source.end

    @property
    def dropped(self) -> int:
        return self._decoder.dropped

    @property
    def time(self) -> float | None:
        """Time of the frame that was delivered last; see `frame_time`."""
        return self.stamp().time

    @property
    def closed(self) -> bool:
        """True after `close`, and when all frames are delivered."""
        return self._decoder.stopped

    def frame_number(self, index: int) -> int:
        """Return the number of frame `index` (0-based, after the stride) in the source. It must have been delivered.

        Pictures and pages that cannot be read have a number.
        """
        for position in self._left_out:  # in order
            if position > index:
                break
            index += 1
        return index * self.stride

    def frame_name(self, index: int) -> str:
        """Return the file stem for frame `index` (0-based, after the stride): its own, or its number in the source.

        Stems of pictures that differ only in their endings have them; numbers have digits enough to sort by name.
        """
        number = self.frame_number(index)
        if self.names is not None:
            return self.names.unique[number]
        bound = self.max_count or (self.count and 2 * self.count)  # twice an estimate
        return number_name(number, bound and bound * self.stride)

    def frame_time(self, index: int) -> float | None:
        """Return when frame `index` is shown, in seconds from the first frame. It must have been delivered.

        Times are the file's own, or follow from its frame rate where it has none; they never decrease. For a live
        source they are the times of arrival, kept for the last `LIVE_TIMES` frames. Pictures have none (None).
        """
        return self.stamp(index).time

    def stamp(self, index: int | None = None) -> Stamp:
        """Return when frame `index`, or the one delivered last, is shown, and where it is in the source.

        It must have been delivered. Of a live source the last `LIVE_TIMES` frames are known; of others before them
        nothing.
        """
        index = self._delivered - 1 if index is None else index
        position = index - self._delivered + len(self._stamps)
        return self._stamps[position] if 0 <= position < len(self._stamps) else NO_STAMP

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        item = self._decoder.get()
        if isinstance(item, Frame):
            stamp = item.stamp
            if stamp.source_frame is None:
                stamp = stamp._replace(source_frame=self.frame_number(self._delivered))
            self._stamps.append(stamp)
            self._delivered += 1
            return item.array
        self.close()
        if item is None:
            raise StopIteration
        try:
            raise item
        finally:
            del item  # the error's traceback references this frame: without this, a cycle keeps the decoder alive

    def close(self) -> None:
        """Stop decoding and release the source. May be called twice."""
        self._decoder.stop()
        self._decoder.join()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_video(
    source: VideoSource,
    stride: int = 1,
    max_frames: int | None = None,
    *,
    strict: bool = False,
    drop: str | None = None,
    retries: int = RETRIES,
) -> VideoReader:
    """Open a video file, images, a camera number, or an RTSP or HTTP address.

    Images are a folder (in natural order: frame2 before frame10), a list of files, a pattern such as `frames/*.jpg` or
    `frames/%05d.png`, or one file: all its pages or the frames of its animation.

    stride      deliver every stride-th frame
    max_frames  deliver at most this many frames
    strict      end with an error at the first damaged packet or image, instead of leaving it out with a note
    drop        what becomes of frames of a camera or stream that inference is too slow for: "latest" keeps only the
                newest one, so results are as recent as possible; "oldest" (the default) keeps the last `QUEUE_FRAMES`,
                so that clips are whole where inference is fast enough on average; "none" keeps all, and falls behind.
                Files and pictures drop none
    retries     number of times that a camera or stream which drops is reopened, after 1, 2, 4 ... seconds

    The first frame is decoded here, so that an unreadable source fails at once. Raises VideoError.
    """
    if stride < 1:
        raise VideoError(f"stride {stride}: must be 1 or more")
    if max_frames is not None and max_frames < 1:
        raise VideoError(f"max_frames {max_frames}: must be 1 or more")
    if drop not in (None, *DROP):
        raise VideoError(f"drop {drop!r}: choose one of {', '.join(DROP)}")
    if retries < 0:
        raise VideoError(f"retries {retries}: must be 0 or more")
    try:
        opened = open_source(source, stride, strict, retries)
        if drop not in (None, "none") and not opened.live:
            close_frames(opened.frames)
            raise VideoError(f"{opened.name}: frames are dropped of cameras and network streams only; remove drop")
        return VideoReader(opened, stride, max_frames, drop)
    except VideoError as error:
        error.__context__ = None  # FFmpeg's error, which may hold an address with a password
        raise


def _and_rest(source: Source, first: Frame) -> Iterator[Frame]:
    """Return all frames of a source. One that may have a single frame is read further, to learn its count."""
    if source.live or source.count_is_exact or (source.count or 1) > 1:
        return itertools.chain([first], source.frames)
    try:
        second = next(source.frames, None)
    except Exception as error:
        source.count = None
        return _then_fail(first, error)
    if second is None:
        source.count, source.count_is_exact = 1, True
        return iter([first])
    source.count = None
    return itertools.chain([first, second], source.frames)


def _then_fail(first: Frame, error: Exception) -> Iterator[Frame]:
    yield first
    raise error


def _same_size(name: str, frames: Iterator[Frame]) -> Iterator[Frame]:
    first = next(frames)
    yield first
    height, width = first.array.shape[:2]
    for index, frame in enumerate(frames, 1):
        if frame.array.shape != first.array.shape:
            raise VideoError(
                f"{name}: the size changes from {width}x{height} to "
                f"{frame.array.shape[1]}x{frame.array.shape[0]} at frame {index}; cut the video there or scale it"
            )
        yield frame
