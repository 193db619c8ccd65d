"""Text session: one video and its prompts, clip by clip."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...device.base import Array
from ...errors import UserError
from ...imaging.masks import probability
from ...media.frame_iterables import iterate_frames
from ...results import Result, Stamp
from ...tracking.session import OnlineSession, iterator_of_results, results_of, stamp_at, steps_under_lock, synchronized
from ...tracking.work import Work
from .clip import Clip, PendingFrame
from .joint_runner import FrameWork, JointRunner
from .state import TrackBatch
from .transforms import ImageSettings, Size, Transforms


class TextSession(OnlineSession):
    """Tracks the objects that sentences name through one video. Made by `Engine.session`; a context manager.

    Text and vision are fused over a clip of `window` frames, so results come in bursts: `push` returns them when a clip
    is complete, `flush` completes the rest. Pushing after a flush continues with the same memory. A clip whose results
    are not taken, because a loop over `stream` is left, is computed to its end before the next one. With low latency
    every `push` returns the result of its frame. It may be used from any thread; see `Engine`.
    """

    def __init__(
        self,
        runner: JointRunner,
        images: ImageSettings,
        batches: Sequence[TrackBatch],
        clip: Clip,
        logits: bool,
        decode_ahead: bool,
    ) -> None:
        """`decode_ahead`: see `TextOptions`; one batch only."""
        super().__init__(images.device.lock)
        self._work: Sequence[FrameWork] = ()
        self._runner, self._images, self._batches = runner, images, batches
        self._logits, self._decode_ahead = logits, decode_ahead
        self._tracks = [track for batch in batches for track in batch.tracks]
        self._clip = clip
        self._size: Size | None = None
        self._transforms: Transforms | None = None

    @property
    def object_ids(self) -> tuple[int, ...]:
        """One object for each sentence, numbered from 1."""
        return tuple(range(1, len(self._tracks) + 1))

    @synchronized
    def push(self, frame: Any, *, time: float | Stamp | None = None) -> list[Result]:
        """Take one frame, uint8 RGB (H,W,3); return the results of its clip if it completes one, else an empty list.

        `time`: seconds from the first frame, for `Result.time`.
        With kernels it may lie on the GPU (`__cuda_array_interface__` or DLPack: PyCUDA, CuPy, torch), where it is read
        in stream order; do not overwrite it before its result is there.
        Raises VideoError for anything that is not such a frame or changes size, UserError after `close`.
        """
        return list(results_of(self._steps(self._add(frame, stamp_at(time)))))

    @synchronized
    def flush(self) -> list[Result]:
        """Return the results of the frames that wait for their clip to fill up. Raises UserError after `close`."""
        self._check_open()
        return list(results_of(self._steps(self._clip.begin())))

    @iterator_of_results
    def stream(self, frames: Any) -> Iterator[Result]:
        """Push every frame, then flush; yield each result when it is computed. Raises as `push` does.

        frames  a `VideoReader`, anything that `open_video` opens, or an iterable of arrays or image files
        """
        for frame, stamp in iterate_frames(frames):
            yield from results_of(steps_under_lock(self._lock, self._steps(self._lock.run(self._add, frame, stamp))))
        yield from results_of(steps_under_lock(self._lock, self._steps(self._lock.run(self._clip.begin))))

    @iterator_of_results
    def feed(self, frame: Any, *, time: float | Stamp | None = None) -> Iterator[Result | Work | None]:
        """Take one frame, and compute the clip that it completes in steps; see `OnlineSession.feed`."""
        results = self._lock.run(self._add, frame, stamp_at(time))
        yield None
        yield from steps_under_lock(self._lock, self._steps(results))

    @iterator_of_results
    def finish(self) -> Iterator[Result | Work | None]:
        """Compute the frames that wait in steps; see `OnlineSession.feed`."""
        yield from steps_under_lock(self._lock, self._steps(self._lock.run(self._clip.begin)))

    @property
    def device_logits(self) -> list[Array]:
        """Low-res logits (n, s, s) of the latest result on the device, one array per batch of prompts.

        On CUDA the arrays have `__cuda_array_interface__`. The next frame overwrites them, so that there are none with
        `decode_ahead`, which raises UserError.
        """
        self._check_open()
        if self._decode_ahead:
            raise UserError(
                "device_logits hold the frame behind with decode_ahead, which overwrites them; remove decode_ahead"
            )
        return [batch.readback.arrays["low_res_logits"] for batch in self._batches]

    def _release(self) -> None:
        self._clip.stop()
        for track in self._tracks:
            track.close()

    def _add(self, frame: Any, stamp: Stamp) -> deque[Result]:
        """Take a frame into the clip. Return where the results of the clip go if it is complete.

        What is left of the clip before it is computed first: both use the same arrays.
        """
        self._check_open()
        frame = self._images.check_frame(frame, self._clip.num_frames, self._size)
        if self._transforms is None:
            self._size = frame.shape[:2]
            self._transforms = self._images.transforms(self._size, self._logits)
            if self._transforms.outputs:
                for batch in self._batches:
                    batch.readback = self._runner.single.new_readback(len(batch.tracks), self._transforms.outputs)
        while not self._clip.is_computed:
            self._advance()
        self._transforms.preprocess_frame(frame, self._clip.pixels)
        self._clip.add(stamp)
        return self._clip.begin() if self._clip.is_full else deque()

    def _advance(self) -> None:
        """Run one stage of the encoding of the clip, or decode its next frame."""
        self._check_open()
        with self._close_on_error():
            self._clip.advance(self._decode)

    def _step(self, results: deque[Result]) -> Result | None:
        """Return a result of a clip that was computed before, else compute one step."""
        if not results:
            self._advance()
        return results.popleft() if results else None

    def _steps(self, results: deque[Result]) -> Iterator[Result | Work | None]:
        """Compute a clip in steps."""
        while self._clip.has_more(results):
            if not results and len(self._batches) == 1 and not self._decode_ahead:
                yield from self._works()
            yield self._step(results)

    def _works(self, frame: PendingFrame | None = None) -> Sequence[FrameWork]:
        """Return the work of the next frame, or of `frame`, one for each batch; none where no frame can be decoded."""
        if not self._work and self._clip.is_encoded and not self.is_closed:
            assert self._transforms is not None
            frame, clip = frame or self._clip.next_frame, self._clip.arrays
            self._work = self._runner.works(self._batches, clip, frame.number, frame.offset, self._transforms)
        return self._work

    def _decode(self, frame: PendingFrame) -> Result | None:
        """Decode the next frame of the encoded clip."""
        assert self._transforms is not None
        work, self._work = self._works(), ()
        if self._decode_ahead and (behind := self._clip.frame_behind) is not None:
            for part in work:
                part.begin_read()
            self._work = self._works(behind)
            for part in self._work:
                part.start_ahead()
        parts = [part.read() for part in work]
        for part in self._work:
            part.settle()
        if not frame.is_shown:
            return None
        read = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        masks, boxes = self._transforms.postprocess_masks(read)
        return Result(
            frame_index=frame.number,
            object_ids=self.object_ids,
            prompt_ids=self.object_ids,
            masks=masks,
            scores=probability(read["score"]),
            score_logits=read["score"],
            ious=read["iou"],
            boxes=boxes,
            low_res_logits=read["low_res_logits"] if self._logits else None,
            **frame.stamp._asdict(),
        )
