"""Text session: one video and its prompts, clip by clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...device.base import Array
from ...imaging.masks import probability
from ...media.frame_iterables import iterate_frames
from ...results import Result
from ...tracking.session import Session, check_time, iterator_of_results, synchronized
from .clip_encoder import ClipEncoder
from .frame_runner import FrameRunner
from .state import TrackBatch
from .transforms import ImageSettings, Size, Transforms


class TextSession(Session):
    """Tracks the objects that sentences name through one video. Made by `Engine.session`; a context manager.

    Text and vision are fused over a clip of `window` frames, so results come in bursts: `push` returns them when a clip
    is complete, `flush` completes the rest. Pushing after a flush continues with the same memory. A clip whose results
    are not taken, because a loop over `stream` is left, is computed to its end before the next one. It may be used from
    any thread; see `Engine`.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        runner: FrameRunner,
        images: ImageSettings,
        batches: Sequence[TrackBatch],
        window: int,
        logits: bool,
    ) -> None:
        super().__init__(images.device.lock)
        self._encoder, self._runner, self._images, self._batches = encoder, runner, images, batches
        self._window, self._logits = window, logits
        self._clip = encoder.new_clip()
        self._tracks = [track for batch in batches for track in batch.tracks]
        self._size: Size | None = None
        self._transforms: Transforms | None = None
        self._num_frames = 0
        """Frames decoded so far."""
        self._waiting: list[float | None] = []
        """Times of the frames in the clip that fills up."""
        self._undecoded: deque[tuple[int, float | None]] = deque()
        """Offsets and times of the frames of the encoded clip that are not decoded yet."""
        self._results: deque[Result] = deque()
        """Results of the encoded clip that were computed before they were taken."""
        self.object_ids = tuple(range(1, len(self._tracks) + 1))

    @synchronized
    def push(self, frame: Any, *, time: float | None = None) -> list[Result]:
        """Take one frame, uint8 RGB (H,W,3); return the results of its clip if it completes one, else an empty list.

        `time`: seconds from the first frame, for `Result.time`.
        With kernels it may lie on the GPU (`__cuda_array_interface__` or DLPack: PyCUDA, CuPy, torch), where it is read
        in stream order; do not overwrite it before its result is there.
        Raises VideoError for anything that is not such a frame or changes size, UserError after `close`.
        """
        return self._decode_all(self._add(frame, check_time(time)))

    @synchronized
    def flush(self) -> list[Result]:
        """Return the results of the frames that wait for their clip to fill up. Raises UserError after `close`."""
        self._check_open()
        return self._decode_all(self._encode_clip())

    @iterator_of_results
    def stream(self, frames: Any) -> Iterator[Result]:
        """Push every frame, then flush; yield each result when it is computed. Raises as `push` does.

        frames  a `VideoReader`, anything that `open_video` opens, or an iterable of arrays or image files
        """
        for frame, time in iterate_frames(frames):
            yield from self._take(self._lock.run(self._add, frame, time))
        yield from self._take(self._lock.run(self._encode_clip))

    @property
    def device_logits(self) -> list[Array]:
        """Low-res logits (n, s, s) of the latest result on the device, one array per batch of prompts.

        On CUDA the arrays have `__cuda_array_interface__`. The next frame overwrites them.
        """
        self._check_open()
        return [batch.readback.arrays["low_res_logits"] for batch in self._batches]

    def _release(self) -> None:
        for track in self._tracks:
            track.close()

    def _add(self, frame: Any, time: float | None) -> deque[Result]:
        """Preprocess a frame into the clip. Return where the results of the clip go if it is complete."""
        self._check_open()
        index = self._num_frames + len(self._undecoded) + len(self._waiting)
        frame = self._images.check_frame(frame, index, self._size)
        if self._transforms is None:
            self._size = frame.shape[:2]
            self._transforms = self._images.transforms(self._size, self._logits)
            if self._transforms.outputs:
                for batch in self._batches:
                    batch.readback = self._runner.new_readback(len(batch.tracks), self._transforms.outputs)
        self._transforms.preprocess_frame(frame, self._clip["pixels"][len(self._waiting)])
        self._waiting.append(time)
        return self._encode_clip() if len(self._waiting) == self._window else deque()

    def _encode_clip(self) -> deque[Result]:
        """Encode the frames that wait, as one clip, complete or not, and return where its results go.

        What is left of the clip before it is decoded first.
        """
        if not self._waiting:
            return deque()
        self._check_open()
        while self._undecoded:
            self._results.append(self._decode())
        self._results = deque()  # an iteration over the clip before this one keeps its own
        with self._close_on_error():
            self._encoder.encode(self._clip, self._tracks, len(self._waiting))
            self._undecoded.extend(enumerate(self._waiting))
            self._waiting = []
        return self._results

    def _next(self, results: deque[Result]) -> Result | None:
        """Return the next result of a clip, which is in `results` if it was computed before; None at its end."""
        if not results and results is self._results and self._undecoded:
            self._check_open()
            results.append(self._decode())
        return results.popleft() if results else None

    def _decode_all(self, results: deque[Result]) -> list[Result]:
        return list(iter(lambda: self._next(results), None))

    def _take(self, results: deque[Result]) -> Iterator[Result]:
        """Yield the results of a clip."""
        while (result := self._lock.run(self._next, results)) is not None:
            yield result

    def _decode(self) -> Result:
        """Decode the next frame of the encoded clip."""
        assert self._transforms is not None
        with self._close_on_error():
            frame, (offset, time) = self._num_frames, self._undecoded.popleft()
            parts = [self._runner.run(b, self._clip, frame, offset, self._transforms) for b in self._batches]
            read = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            masks, boxes = self._transforms.postprocess_masks(read)
            self._num_frames += 1
        return Result(
            frame_index=frame,
            object_ids=self.object_ids,
            prompt_ids=self.object_ids,
            masks=masks,
            scores=probability(read["score"]),
            score_logits=read["score"],
            ious=read["iou"],
            boxes=boxes,
            low_res_logits=read["low_res_logits"] if self._logits else None,
            time=time,
        )
