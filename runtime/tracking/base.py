"""Base class of the offline and online video sessions of SAM 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import PromptError
from ..imaging.gpu import DeviceMasks
from ..imaging.masks import boxes_and_areas, probability
from ..imaging.upsample import MaskUpsampler, square_upsampler
from ..results import Result, Stamp
from .memory_selection import MemorySelection, select_memory
from .object_memory import BlockPool
from .prompt_inputs import PromptInputs
from .session import Session
from .state import ObjectOutput, TrackedObject, TrackingOptions
from .step import TrackerNetwork


class TrackingSession(Session):
    """Objects of one video. Use `VideoSession` or `LiveSession`."""

    def __init__(
        self, network: TrackerNetwork, logits: bool, options: TrackingOptions, pool: BlockPool, grows: bool
    ) -> None:
        super().__init__(network.device.lock)
        self._network, self._logits, self._options = network, logits, options
        self._pool, self._grows = pool, grows
        self._objects: dict[int, TrackedObject] = {}
        self._length: int | None = None
        """Number of frames, None for a video without end."""
        self._size: tuple[int, int] | None = None
        self._upsampler: MaskUpsampler | None = None
        self._device_masks: DeviceMasks | None = None

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Objects in the order in which they were added."""
        return tuple(self._objects)

    def state(self, obj: int) -> TrackedObject:
        """Return the prompts and outputs of an object by frame, for inspection. Raises PromptError if there is none."""
        try:
            return self._objects[check_object_id(obj)]
        except KeyError:
            have = ", ".join(map(str, self._objects)) or "none"
            raise PromptError(f"there is no object {obj!r}; objects: {have}") from None

    # -- objects --------------------------------------------------------------------------------------------------

    def _object(self, obj: int) -> TrackedObject:
        """Return the object `obj`; a new id adds one. Raises UserError when there is no room for it."""
        if obj not in self._objects:
            self._objects[obj] = TrackedObject(self._pool.open(self._grows))
        return self._objects[obj]

    def _remove(self, obj: int) -> None:
        self._objects.pop(obj).memory.close()

    def _release(self) -> None:
        for obj in list(self._objects):
            self._remove(obj)

    # -- one frame ------------------------------------------------------------------------------------------------

    def _start(self, size: tuple[int, int]) -> None:
        """Set the size (H, W) of the video's frames."""
        self._size, self._upsampler = size, square_upsampler(self._network.low_res_side, size)
        self._device_masks = None if self._options.non_overlap_masks else self._network.device_masks(size)

    def _parse(self, prompt: Any) -> PromptInputs:
        assert self._size is not None
        return self._network.prompt_encoder.parse(prompt, self._size)

    def _select_memory(self, tracked: TrackedObject, frame: int, reverse: bool = False) -> MemorySelection:
        return select_memory(tracked, frame, self._length, reverse, self._network.memory_config, self._options)

    def _result(self, frame: int, outputs: Mapping[int, ObjectOutput | None], stamp: Stamp) -> Result:
        """Build the result of a frame; an object without an output has an empty mask."""
        side, absent = self._network.low_res_side, self._network.no_object_logit
        low_res = np.empty((len(outputs), side, side), np.float32)
        scores, ious = np.empty((2, len(outputs)), np.float32)
        for i, output in enumerate(outputs.values()):
            low_res[i] = absent if output is None else output.low_res_logits
            scores[i] = absent if output is None else output.score
            ious[i] = np.nan if output is None else output.iou
        masks, boxes = self._masks(low_res, list(outputs.values()))
        return Result(
            frame_index=frame,
            object_ids=tuple(outputs),
            prompt_ids=tuple(outputs),
            masks=masks,
            scores=probability(scores),
            score_logits=scores,
            ious=ious,
            boxes=boxes,
            low_res_logits=low_res if self._logits else None,
            **stamp._asdict(),
        )

    def _masks(self, low_res: np.ndarray, outputs: Sequence[ObjectOutput | None]) -> tuple[np.ndarray, np.ndarray]:
        """Make the masks of a frame and their boxes, but for those that the device has made."""
        assert self._upsampler is not None
        if not self._options.non_overlap_masks or len(low_res) < 2:
            made = np.empty((len(low_res), *self._upsampler.source_hw), bool)
            boxes = np.empty((len(low_res), 4), np.float32)
            for i, output in enumerate(outputs):
                own = slice(i, i + 1)
                if self._device_masks is None or output is None or output.mask_bits is None:
                    boxes[own] = boxes_and_areas(self._upsampler.masks(low_res[own], made[own]))[0]
                else:
                    made[own] = self._device_masks.masks(output.mask_bits.packed)
                    boxes[own] = self._device_masks.boxes(output.mask_bits.stats)
                    output.mask_bits = None
            return made, boxes
        logits = self._upsampler.logits(low_res)
        masks: np.ndarray = logits > 0
        masks &= logits.argmax(0) == np.arange(len(logits))[:, None, None]
        return masks, boxes_and_areas(masks)[0].astype(np.float32)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, which True is not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_object_id(obj: Any) -> int:
    """Return an object's id. Raises PromptError unless it is a whole number."""
    if not is_whole(obj):
        raise PromptError(f"an object id must be a whole number, not {obj!r}")
    return int(obj)


def check_frame_number(value: Any, name: str, high: int) -> int:
    """Return a frame number in 0..high. Raises PromptError that calls it `name`."""
    if not is_whole(value) or not 0 <= value <= high:
        raise PromptError(f"{name} {value!r} is outside the video; give a whole number in 0..{high}")
    return int(value)
