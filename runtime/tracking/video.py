"""Offline tracking: all frames are known, prompts on any frame, propagation either way, corrections.

The state machine of SAM 2's video predictor, rule by rule; `state.py` explains the terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import PromptError
from ..media.random_access import FrameSequence
from ..prompts import Box, Mask, Points
from ..results import Result
from .base import TrackingSession, check_frame_number, check_object_id
from .feature_cache import CACHED_FRAMES, FeatureCache
from .prompt_inputs import PointInputs, PromptInputs
from .session import iterator_of_results, synchronized
from .state import ObjectOutput, TrackedObject, TrackingOptions
from .step import TrackerNetwork, commit_memory, predict_frame, prompt_request, tracking_request


class VideoSession(TrackingSession):
    """Made by `Engine.video`. Frames are decoded and encoded when they are needed. It may be used from any thread; see
    `Engine`.

    Memory: every frame that an object was tracked on can be attended to again, so it is kept: one remembered map (1 MB
    at 1024 pixels in float32, half that in half precision) and one low-resolution mask per object and frame. For
    videos without end use `Engine.live`.
    """

    REVERSE_INCLUDES_FIRST: ClassVar[bool] = False
    """Whether tracking in reverse from the first frame returns that frame."""

    def __init__(self, network: TrackerNetwork, frames: FrameSequence, logits: bool, options: TrackingOptions) -> None:
        super().__init__(network, logits, options, network.memory_pool(), True)
        self._frames, self._features = frames, FeatureCache(network, frames)
        self._length = self.num_frames = len(frames)
        self._start(self._features.size)
        self._on_close.callback(self._features.close)

    # -- prompts --------------------------------------------------------------------------------------------------

    def add_points(
        self, frame: int, obj: int, points: Any, labels: Any, clear_old: bool = True, normalized: bool = False
    ) -> Result:
        """Add points on an object; return all objects on that frame.

        points (K,2) x, y in source pixels (0..1 if `normalized`); labels (K,) 1 on it, 0 beside it; `clear_old` False
        adds to the points (or the box) that the object has on this frame. The object's present mask there is given to
        the network along with them. Raises PromptError.
        """
        return self._add_prompt(frame, obj, [Points(points, labels, normalized)], clear_old)

    def add_box(
        self, frame: int, obj: int, box: Any, points: Any = None, labels: Any = None, normalized: bool = False
    ) -> Result:
        """Add a box (left, top, right, bottom), with or without points; replaces the object's prompt on that frame."""
        if (points is None) != (labels is None):
            raise PromptError("give points and labels together, or neither")
        inside = [] if points is None else [Points(points, labels, normalized)]
        return self._add_prompt(frame, obj, [Box(box, normalized), *inside], True)

    def add_mask(self, frame: int, obj: int, mask: Any) -> Result:
        """Add an object's mask, (H,W) at source size; replaces points on that frame, and is the result there."""
        return self._add_prompt(frame, obj, Mask(mask), True)

    @synchronized
    def _add_prompt(self, frame: int, obj: int, prompt: Any, clear_old: bool) -> Result:
        self._check_open()
        frame, obj = check_frame_number(frame, "frame", self.num_frames - 1), check_object_id(obj)
        parsed = self._parse(prompt)
        known = self._objects.get(obj)
        if isinstance(parsed, PointInputs):
            old = None if clear_old or known is None else known.point_inputs.get(frame)
            parsed = parsed if old is None else self._network.prompt_encoder.check(old + parsed)
        conditioning = self._predict_prompt(frame, obj, parsed)
        return self._prompted_result(frame, conditioning)

    def _predict_prompt(self, frame: int, obj: int, prompt: PromptInputs) -> bool:
        """Compute the output of a prompt and store it as pending; return whether it makes a conditioning frame."""
        known = self._objects.get(obj)
        corrects = known is not None and frame in known.frames_tracked
        conditioning = not corrects or self._options.add_all_frames_to_correct_as_cond
        previous = None if known is None else known.pending_or_committed(frame, conditioning)
        memory = None
        if known is not None and corrects and isinstance(prompt, PointInputs) and self._network.clicks_see_memory:
            memory = self._select_memory(known, frame, known.frames_tracked[frame])
        logits = None if previous is None or previous.given is not None else previous.low_res_logits
        requests = [prompt_request(self._network, prompt, logits, memory, self._device_masks)]
        features = self._features.get(frame, requests)
        (output,) = predict_frame(self._network, features, requests, self._options.fill_hole_area)
        tracked = self._object(obj)  # not before: a prompt that is refused leaves no object behind
        pending = tracked.pending_cond_outputs if conditioning else tracked.pending_non_cond_outputs
        tracked.store(pending, frame, output)
        tracked.set_prompt(frame, prompt)
        return conditioning

    @synchronized
    def clear_prompts(self, frame: int, obj: int) -> Result:
        """Remove an object's prompts on a frame; a committed output there counts as tracked. Raises PromptError."""
        self._check_open()
        frame = check_frame_number(frame, "frame", self.num_frames - 1)
        tracked = self.state(obj)
        tracked.point_inputs.pop(frame, None)
        tracked.mask_inputs.discard(frame)
        tracked.drop(tracked.pending_cond_outputs, frame)
        tracked.drop(tracked.pending_non_cond_outputs, frame)
        output = tracked.cond_outputs.pop(frame, None)
        if output is not None:
            tracked.store(tracked.non_cond_outputs, frame, output)
            tracked.frames_tracked.pop(frame, None)
        return self._prompted_result(frame)

    @synchronized
    def remove_object(self, obj: int) -> list[Result]:
        """Remove an object. Returns the frames that it had prompts on, without it. Raises PromptError."""
        self._check_open()
        tracked = self.state(obj)
        frames = [*tracked.point_inputs, *tracked.mask_inputs]
        self._remove(obj)
        if not self._objects:
            return []
        return [self._prompted_result(f) for f in frames]

    @synchronized
    def reset(self) -> None:
        """Remove all objects and prompts; the frames stay."""
        self._check_open()
        self._release()

    def output(self, frame: int, obj: int) -> ObjectOutput | None:
        """Return the stored output of an object on a frame: of its latest prompt, else of tracking; None if neither."""
        tracked = self.state(obj)
        pending = tracked.pending_cond_outputs.get(frame) or tracked.pending_non_cond_outputs.get(frame)
        return pending or tracked.committed(frame)

    # -- tracking -------------------------------------------------------------------------------------------------

    def propagate(
        self, start_frame: int | None = None, max_frames: int | None = None, reverse: bool = False
    ) -> Iterator[Result]:
        """Track all objects forward from `start_frame` (default: the first frame with a prompt), or in `reverse`.

        At most `max_frames` frames after the first one. Prompts count from here on. Frames that prompts made are
        returned as they are. Objects may be added, refined and removed meanwhile: removed ones are left out at once,
        added and refined ones count from the next call. Nothing is computed before the first result is requested.
        Raises PromptError when there is nothing to track or a number is out of range.
        """
        self._check_open()
        if start_frame is not None:
            start_frame = check_frame_number(start_frame, "start_frame", self.num_frames - 1)
        if max_frames is not None and (not isinstance(max_frames, (int, np.integer)) or max_frames < 0):
            raise PromptError(f"max_frames must be a whole number of 0 or more, not {max_frames!r}")
        return self._propagate(start_frame, max_frames, reverse)

    @iterator_of_results
    def _propagate(self, start: int | None, limit: int | None, reverse: bool) -> Iterator[Result]:
        followed = self._commit_pending()
        if start is None:
            start = min(frame for tracked in followed.values() for frame in tracked.cond_outputs)
        limit = self.num_frames if limit is None else limit
        if reverse:
            # SAM 2 returns nothing at all when it starts at frame 0 in reverse
            order = range(start, max(start - limit, 0) - 1, -1) if start or self.REVERSE_INCLUDES_FIRST else range(0)
        else:
            order = range(start, min(start + limit, self.num_frames - 1) + 1)
        for at, frame in enumerate(order):
            result = self._step(frame, followed, reverse, order[at + 1 :])
            if result is None:
                return
            yield result

    @synchronized
    def _commit_pending(self) -> dict[int, TrackedObject]:
        """Commit and remember the pending outputs; return all objects."""
        self._check_open()
        for frame, pairs in commit_pending(self._objects).items():
            commit_memory(self._network, self._features[frame], pairs)
        return dict(self._objects)

    @synchronized
    def _step(
        self, frame: int, followed: Mapping[int, TrackedObject], reverse: bool, next_frames: Sequence[int]
    ) -> Result | None:
        """Track one frame; None when no object is left. `next_frames`: those that come after it."""
        self._check_open()
        followed = {obj: tracked for obj, tracked in followed.items() if self._objects.get(obj) is tracked}
        if not followed:
            return None
        waiting = [tracked for tracked in followed.values() if frame not in tracked.cond_outputs]
        if waiting:
            selected = [self._select_memory(tracked, frame, reverse) for tracked in waiting]
            requests = [tracking_request(memory, self._device_masks) for memory in selected]
            coming = [f for f in next_frames[:CACHED_FRAMES] if any(f not in t.cond_outputs for t in waiting)]
            features = self._features.get(frame, requests, coming)
            with self._features.beside(len(requests)):
                predicted = predict_frame(self._network, features, requests, self._options.fill_hole_area)
                for tracked, output in zip(waiting, predicted, strict=True):
                    tracked.store(tracked.non_cond_outputs, frame, output)
                commit_memory(self._network, features, list(zip(waiting, predicted, strict=True)))
        for tracked in followed.values():
            tracked.frames_tracked[frame] = reverse
        outputs = {obj: tracked.committed(frame) for obj, tracked in followed.items()}
        return self._result(frame, outputs, self._frames.stamp(frame))

    def _prompted_result(self, frame: int, conditioning: bool | None = None) -> Result:
        """Build the result of a frame whose prompts changed; `conditioning` None: whether a prompt is pending there."""
        if conditioning is None:
            conditioning = any(frame in tracked.pending_cond_outputs for tracked in self._objects.values())
        outputs = {obj: tracked.pending_or_committed(frame, conditioning) for obj, tracked in self._objects.items()}
        return self._result(frame, outputs, self._frames.stamp(frame))


def check_prompted(objects: Mapping[int, TrackedObject]) -> None:
    """Raise PromptError unless there are objects, and each has a conditioning frame."""
    if not objects:
        raise PromptError("there is no object to track; add points, a box or a mask first")
    for obj, tracked in objects.items():
        if not tracked.cond_outputs and not tracked.pending_cond_outputs:
            raise PromptError(f"object {obj} has no prompt left; add one or remove the object")


def commit_pending(objects: Mapping[int, TrackedObject]) -> dict[int, list[tuple[TrackedObject, ObjectOutput]]]:
    """Commit the pending outputs of all objects; return those to remember, by frame. Raises PromptError."""
    check_prompted(objects)
    by_frame: dict[int, list[tuple[TrackedObject, ObjectOutput]]] = {}
    for tracked in objects.values():
        for pending, outputs in (
            (tracked.pending_non_cond_outputs, tracked.non_cond_outputs),
            (tracked.pending_cond_outputs, tracked.cond_outputs),
        ):
            for frame, output in pending.items():
                tracked.store(outputs, frame, output)
                by_frame.setdefault(frame, []).append((tracked, output))
            pending.clear()
        for frame in tracked.cond_outputs:
            tracked.drop(tracked.non_cond_outputs, frame)
    # a correction of a conditioning frame was dropped just now: no frame attends to it
    kept = {f: [(tracked, o) for tracked, o in pairs if tracked.committed(f) is o] for f, pairs in by_frame.items()}
    return {frame: pairs for frame, pairs in kept.items() if pairs}
