"""Text session: one video and its prompts, clip by clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...device.base import Array
from ...errors import UserError
from ...imaging.masks import probability
from ...results import Result
from .clip_encoder import ClipEncoder
from .frame_runner import FrameRunner
from .state import TrackBatch
from .transforms import ImageSettings, Size, Transforms


class TextSession:
    """Tracks the objects that sentences name through one video. Made by `Engine.session`; a context manager.

    Text and vision are fused over a clip of `window` frames, so results come in bursts: `push` returns them when a clip
    is complete, `flush` completes the rest. Pushing after a flush continues with the same memory.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        runner: FrameRunner,
        images: ImageSettings,
        batches: Sequence[TrackBatch],
        window: int,
        logits: bool,
        on_close: Callable[[TextSession], None] | None = None,
    ) -> None:
        self._encoder, self._runner, self._images, self._batches = encoder, runner, images, batches
        self._window, self._logits, self._on_close = window, logits, on_close
        self._clip = encoder.new_clip()
        self._tracks = [track for batch in batches for track in batch.tracks]
        self._size: Size | None = None
        self._transforms: Transforms | None = None
        self._num_frames = self._num_waiting = 0
        self._open = True
        self.object_ids = tuple(range(1, len(self._tracks) + 1))

    def push(self, frame: Any) -> list[Result]:
        """Take one frame, uint8 RGB (H,W,3); return the results of its clip if it completes one, else an empty list.

        With kernels it may lie on the GPU (`__cuda_array_interface__` or DLPack: PyCUDA, CuPy, torch), where it is read
        in stream order; do not overwrite it before its result is there.
        Raises VideoError for anything that is not such a frame or changes size, UserError after `close`.
        """
        return list(self._run_clip()) if self._add(frame) else []

    def flush(self) -> list[Result]:
        """Return the results of the frames that wait for their clip to fill up. Raises UserError after `close`."""
        self._check_open()
        return list(self._run_clip())

    def stream(self, frames: Iterable[Any]) -> Iterator[Result]:
        """Push every frame, then flush; yield each result when it is computed. Raises as `push` does."""
        for frame in frames:
            if self._add(frame):
                yield from self._run_clip()
        yield from self._run_clip()

    @property
    def device_logits(self) -> list[Array]:
        """Low-res logits (n, s, s) of the latest result on the device, one array per batch of prompts.

        On CUDA the arrays have `__cuda_array_interface__`. The next frame overwrites them.
        """
        self._check_open()
        return [batch.readback.arrays["low_res_logits"] for batch in self._batches]

    def close(self) -> None:
        """Release the memory of the objects. Closing twice is harmless."""
        if self._open:
            self._open = False
            for track in self._tracks:
                track.close()
            if self._on_close is not None:
                self._on_close(self)

    def __enter__(self) -> TextSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise UserError("this session is closed; open another one with Engine.session()")

    def _add(self, frame: Any) -> bool:
        """Preprocess a frame into the clip; return whether the clip is complete."""
        self._check_open()
        frame = self._images.check_frame(frame, self._num_frames + self._num_waiting, self._size)
        if self._transforms is None:
            self._size = frame.shape[:2]
            self._transforms = self._images.transforms(self._size, self._logits)
            if self._transforms.outputs:
                for batch in self._batches:
                    batch.readback = self._runner.new_readback(len(batch.tracks), self._transforms.outputs)
        self._transforms.preprocess_frame(frame, self._clip["pixels"][self._num_waiting])
        self._num_waiting += 1
        return self._num_waiting == self._window

    def _run_clip(self) -> Iterator[Result]:
        """Encode the frames that wait, as one clip, complete or not, and decode them one by one."""
        first, length = self._num_frames, self._num_waiting
        if self._transforms is None or not length:
            return
        self._num_frames, self._num_waiting = first + length, 0
        self._encoder.encode(self._clip, self._tracks, length)
        for offset in range(length):
            frame = first + offset
            parts = [self._runner.run(b, self._clip, frame, offset, self._transforms) for b in self._batches]
            read = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            masks, boxes = self._transforms.postprocess_masks(read)
            yield Result(
                frame_index=frame,
                object_ids=self.object_ids,
                prompt_ids=self.object_ids,
                masks=masks,
                scores=probability(read["score"]),
                score_logits=read["score"],
                ious=read["iou"],
                boxes=boxes,
                low_res_logits=read["low_res_logits"] if self._logits else None,
            )
