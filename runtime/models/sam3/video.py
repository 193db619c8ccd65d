"""Offline tracking with SAM 3: the rules of its tracker where they differ from those of SAM 2's.

All objects of a video are one group: a prompt on one of them makes its frame a conditioning frame of all, where objects
without a prompt keep what they were tracked as, or count as present with an empty mask. Masks that are given on one
frame do not overlap, and neither do masks that are remembered of it. Clicks never see the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np

from ...imaging.masks import boxes_and_areas
from ...media.random_access import FrameSequence
from ...results import Result, Stamp
from ...tracking.base import check_frame_number
from ...tracking.prompt_inputs import PromptInputs
from ...tracking.session import synchronized
from ...tracking.state import ObjectOutput, TrackedObject, TrackingOptions
from ...tracking.step import MASK_PROMPT_SCORE
from ...tracking.video import VideoSession, check_prompted
from .interface import ConceptTracker


class Sam3VideoSession(VideoSession):
    """Made by `Engine.video` for SAM 3."""

    REVERSE_INCLUDES_FIRST: ClassVar[bool] = True

    def __init__(self, network: ConceptTracker, frames: FrameSequence, logits: bool, options: TrackingOptions) -> None:
        # every prompt makes a conditioning frame
        super().__init__(network, frames, logits, replace(options, add_all_frames_to_correct_as_cond=True))
        self._tracker = network

    def _predict_prompt(self, frame: int, obj: int, prompt: PromptInputs) -> bool:
        conditioning = super()._predict_prompt(frame, obj, prompt)
        if isinstance(prompt, np.ndarray):
            self._take_pixels(frame, prompt)
            self._objects[obj].pending_cond_outputs[frame].given = prompt
        return conditioning

    def _take_pixels(self, frame: int, mask: np.ndarray) -> None:
        """Take the pixels of a mask away from the masks that were given before it."""
        assert self._size is not None
        for tracked in self._objects.values():
            output = tracked.pending_cond_outputs.get(frame)
            if output is not None and output.given is not None:
                output.given = output.given & ~mask
                output.low_res_logits = self._tracker.mask_resizer(self._size).to_logits([output.given])[0]

    def _result(self, frame: int, outputs: Mapping[int, ObjectOutput | None], stamp: Stamp) -> Result:
        """Build the result of a frame, with masks as they were given."""
        result = super()._result(frame, outputs, stamp)
        for i, output in enumerate(outputs.values()):
            if output is not None and output.given is not None:
                result.masks[i], result.boxes[i] = output.given, boxes_and_areas(output.given[None])[0][0]
        return result

    @synchronized
    def _commit_pending(self) -> dict[int, TrackedObject]:
        """Make conditioning frames of all frames with prompts, for all objects; return the objects."""
        self._check_open()
        check_prompted(self._objects)
        for frame in sorted({f for tracked in self._objects.values() for f in tracked.pending_cond_outputs}):
            self._condition(frame)
        return dict(self._objects)

    def _condition(self, frame: int) -> None:
        outputs: list[ObjectOutput] = []
        for tracked in self._objects.values():
            pending = tracked.pending_cond_outputs.pop(frame, None)
            output = pending or tracked.committed(frame) or self._absent()
            if tracked.non_cond_outputs.get(frame) is output:
                del tracked.non_cond_outputs[frame]
            tracked.drop(tracked.non_cond_outputs, frame)
            tracked.store(tracked.cond_outputs, frame, output)
            output.block, output.given = output.block or tracked.memory.allocate(), None
            outputs.append(output)
        logits = self._tracker.without_overlaps(np.stack([output.low_res_logits for output in outputs]))
        scores, blocks = [o.score for o in outputs], [o.block for o in outputs if o.block is not None]
        self._tracker.encode_memory(self._features[frame], list(logits), [True] * len(outputs), scores, blocks)

    def _absent(self) -> ObjectOutput:
        """Return the output of an object that a conditioning frame of the others knows nothing of."""
        side, unknown = self._network.low_res_side, np.zeros(4, np.float32)
        logits = np.full((side, side), self._network.no_object_logit, np.float32)
        pointer = self._tracker.no_object_pointer
        return ObjectOutput(logits, MASK_PROMPT_SCORE, pointer, -1, unknown, (0, 0), prompted=True)

    @synchronized
    def clear_prompts(self, frame: int, obj: int) -> Result:
        """Remove an object's prompts on a frame. When no object has one there, it counts as tracked.

        Raises PromptError.
        """
        self._check_open()
        frame = check_frame_number(frame, "frame", self.num_frames - 1)
        self._forget_prompt(frame, self.state(obj))
        return self._prompted_result(frame)

    def _forget_prompt(self, frame: int, tracked: TrackedObject) -> None:
        tracked.point_inputs.pop(frame, None)
        tracked.mask_inputs.discard(frame)
        tracked.drop(tracked.pending_cond_outputs, frame)
        if any(frame in t.point_inputs or frame in t.mask_inputs for t in self._objects.values()):
            return
        for other in self._objects.values():
            output = other.cond_outputs.pop(frame, None)
            if output is not None:
                other.store(other.non_cond_outputs, frame, output)
                other.frames_tracked.pop(frame, None)
        if not any(other.cond_outputs for other in self._objects.values()):
            self._forget_tracking()

    def _forget_tracking(self) -> None:
        """Forget what was tracked: the prompts that it came from are gone."""
        for tracked in self._objects.values():
            for frame in list(tracked.non_cond_outputs):
                tracked.drop(tracked.non_cond_outputs, frame)
            tracked.frames_tracked.clear()

    def _remove(self, obj: int) -> None:
        tracked = self._objects[obj]
        for frame in [*tracked.point_inputs, *tracked.mask_inputs]:
            self._forget_prompt(frame, tracked)
        super()._remove(obj)
