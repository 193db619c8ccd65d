"""One video and its sentences: frames in, results out, a clip at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ...device import interop
from ...errors import UserError, VideoError
from ...imaging.masks import boxes_and_areas, probability
from ...imaging.upsample import MaskUpsampler
from ...prompts import Text
from ...results import Result
from ..options import TextOptions


class TextSession:
    """Follows sentences through one video. Made by `Engine.session`; a context manager that closes itself.

    Text and vision are fused over a clip of `window` frames, so results come in bursts: `push` returns them when a clip
    is complete, `flush` completes the rest. Pushing after a flush goes on with the same memory.
    """

    def __init__(
        self,
        network: Any,
        prompts: Sequence[Text],
        logits: bool,
        options: TextOptions,
        on_close: Callable[[TextSession], None] | None = None,
    ) -> None:
        window = options.window
        if window is not None and not 1 <= window <= network.window:
            raise UserError(
                f"window must be 1 to {network.window}, the clip length this bundle was trained with, not {window}"
            )
        self._window = window or network.window
        self._network, self._on_close = network, on_close
        self._logits = logits
        self._size: tuple[int, int] | None = None
        self._resized = (0, 0)
        self._upsampler: Any = None
        self._frames = 0
        self._waiting = 0
        self._open = True
        self._clip = self._network.open(prompts, options.conditional_memory, options.memory)
        self.object_ids = tuple(range(1, len(prompts) + 1))

    # -- frames in ------------------------------------------------------------------------------------------------

    def put(self, frame: Any) -> None:
        """Take one frame, uint8 RGB (H, W, 3), and compute nothing yet: `Engine.step` or `push` does.

        With kernels the frame may lie on the GPU (`__cuda_array_interface__` or DLPack: PyCUDA, CuPy, torch) and is read
        there, in the order of the stream; leave it alone until the result is there.
        Raises VideoError for anything that is not such a frame or changes size, UserError when a clip is waiting.
        """
        self._check_open()
        if self.ready:
            raise UserError("a complete clip is waiting: call Engine.step() or push() before the next frame")
        frame = self._checked(frame)
        self._network.load(self._clip, self._waiting, frame, self._resized)
        self._waiting += 1

    def push(self, frame: Any) -> list[Result]:
        """Take one frame; the results of its clip when it completes one, else an empty list."""
        self.put(frame)
        return list(self.advance()) if self.ready else []

    def flush(self) -> list[Result]:
        """Results of the frames that wait for their clip to fill up."""
        self._check_open()
        return list(self.advance())

    def stream(self, frames: Iterable[Any]) -> Iterator[Result]:
        """Push every frame, then flush; results are yielded one by one as they are computed."""
        for frame in frames:
            self.put(frame)
            if self.ready:
                yield from self.advance()
        yield from self.advance()

    @property
    def device_logits(self) -> list[Any]:
        """Low-res logits (n, s, s) of the frame whose result came last, as the device's own arrays, one per batch of
        prompts: on CUDA they have `__cuda_array_interface__`. Overwritten by the next frame."""
        self._check_open()
        return [batch.results.arrays["low_res_logits"] for batch in self._clip.batches]

    # -- results out ----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a complete clip is waiting."""
        return self._waiting == self._window

    def advance(self) -> Iterator[Result]:
        """Run the frames that wait, as one clip, complete or not."""
        length, first = self._waiting, self._frames
        if not length:
            return
        self._waiting = 0
        self._frames += length
        for decoded in self._network.run(self._clip, first, length, self._logits):
            yield self._result(first + decoded.offset, decoded)

    def _result(self, index: int, decoded: Any) -> Result:
        masks, boxes, score = decoded.masks, decoded.boxes, decoded.score
        if masks is None:
            masks = self._upsampler.masks(decoded.low_res_logits)
            boxes = boxes_and_areas(masks)[0].astype(np.float32)
        return Result(
            frame_index=index,
            object_ids=self.object_ids,
            prompt_ids=self.object_ids,
            masks=masks,
            scores=probability(score),
            score_logits=score,
            boxes=boxes,
            low_res_logits=decoded.low_res_logits if self._logits else None,
        )

    # -- life -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the memory rows back. Closing twice is harmless."""
        if self._open:
            self._open = False
            self._network.close(self._clip)
            if self._on_close is not None:
                self._on_close(self)

    def __enter__(self) -> TextSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise UserError("this session is closed; open another one with Engine.session()")

    def _checked(self, frame: Any) -> Any:
        frame = self._here(frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise VideoError(
                f"frame {self._frames + self._waiting}: must be uint8 RGB (height, width, 3), "
                f"not {frame.dtype} {frame.shape}"
            )
        size = frame.shape[:2]
        if self._size is None:
            self._size = size
            network = self._network
            self._resized = network.resized(size)
            self._upsampler = MaskUpsampler(network.low_res_side, network.image_size, self._resized, size)
        elif size != self._size:
            raise VideoError(
                f"frame {self._frames + self._waiting}: size changed from {self._size[1]}x{self._size[0]} to "
                f"{size[1]}x{size[0]}; open a new session for the new size"
            )
        return frame

    def _here(self, frame: Any) -> Any:
        """The frame as a numpy array, or as a `DeviceArray` where it is on the device that this session runs on."""
        if not interop.is_cuda_array(frame):
            return np.asarray(frame)
        if self._network.kernels is None:
            raise VideoError(
                f"frame {self._frames + self._waiting}: is on a GPU, and this session takes frames from the "
                "host; load the engine with a CUDA backend and kernels='on', or copy the frame"
            )
        return interop.as_device_array(frame, self._network._device)
