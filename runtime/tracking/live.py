"""Online tracking: frames as they come, prompts at any time, bounded memory.

The rules are those of SAM 2's video predictor with an empty future. A prompt on the frame that is pushed makes it a
conditioning frame; a later prompt on the frame just shown refines that prompt, or corrects its tracked mask. Only
the past that a later frame can still attend to is kept: the frames just before, and the latest conditioning
frames.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from ..errors import PromptError, UserError
from ..media.frame_iterables import iterate_frames, peek
from ..results import NO_STAMP, Result, Stamp
from .base import TrackingSession, check_object_id
from .live_features import LiveFeatures, Peek
from .memory_selection import MemoryConfig, strided_frames
from .prompt_inputs import PointInputs, PromptInputs
from .requests import DecodeRequest
from .session import OnlineSession, iterator_of_results, results_of, stamp_at, steps_under_lock, synchronized
from .state import ObjectOutput, TrackedObject, TrackingOptions
from .step import (
    DecodeWork,
    MemoryWork,
    TrackerNetwork,
    freed_on_error,
    object_output,
    prompt_request,
    tracking_request,
)
from .work import Work

MAX_COND_FRAMES = 4
"""Conditioning frames that an object keeps unless `max_cond_frames_in_attn` says otherwise."""

PromptsOn = Callable[[int], Mapping[int, Any] | None]
"""Returns the prompts on a frame, by object."""


class UnfinishedFrame(NamedTuple):
    """A frame that has steps left, and the objects that were known before it."""

    frame: int
    known: Collection[int]


class LiveSession(TrackingSession, OnlineSession):
    """Made by `Engine.live`. Every push returns its frame's result. It may be used from any thread; see `Engine`."""

    def __init__(self, network: TrackerNetwork, logits: bool, options: TrackingOptions) -> None:
        options = replace(options, max_cond_frames_in_attn=options.max_cond_frames_in_attn or MAX_COND_FRAMES)
        assert options.max_cond_frames_in_attn is not None
        # what one frame attends to, the frame itself, and a last frame that is no multiple of the stride
        blocks = options.max_cond_frames_in_attn + network.memory_config.num_maskmem + 1
        super().__init__(network, logits, options, network.memory_pool(blocks), False)
        self._features = LiveFeatures(network)
        self._on_close.callback(self._features.drop)
        self._last: int | None = None
        """Number of the frame that takes corrections."""
        self._num_frames = 0
        self._stamp = NO_STAMP
        self._prompted_frames: set[int] = set()
        self._unfinished: UnfinishedFrame | None = None
        """The frame that has steps left."""

    # -- frames ---------------------------------------------------------------------------------------------------

    @synchronized
    def push(
        self, frame: Any, prompts: Mapping[int, Any] | None = None, *, time: float | Stamp | None = None
    ) -> list[Result]:
        """Take one frame, uint8 RGB (H,W,3), with prompts on it by object; return its result, in a list of one.

        `time`: seconds from the first frame, for `Result.time`.
        A prompt is a `Points`, `Box` or `Mask`, or a list of a box and points; an id that is new adds an object. Raises
        VideoError for an invalid frame or another size, PromptError for a bad prompt, UserError when there is no room
        for another object. A frame that raises an error is not taken.
        """
        return list(results_of(self._compute(frame, lambda _: prompts, time)))

    @iterator_of_results
    def feed(
        self, frame: Any, prompts: Mapping[int, Any] | None = None, *, time: float | Stamp | None = None
    ) -> Iterator[Result | Work | None]:
        """Take one frame as `push` does, in steps; see `OnlineSession.feed`.

        Another call on the session in between leaves the frame out, and its next step raises UserError.
        """
        yield from steps_under_lock(self._lock, self._compute(frame, lambda _: prompts, time))

    def _compute(
        self, frame: Any, prompts_on: PromptsOn, time: float | Stamp | None, peek: Peek | None = None
    ) -> Iterator[Any]:
        """Compute one frame; each step under the lock. The last one gives its result. `peek` shows what comes next."""
        self._check_open()
        stamp = stamp_at(time)
        frame = self._network.frame_reader.check(frame, self._num_frames, self._size)
        if self._size is None:
            self._start(frame.shape[:2])
        index = self._num_frames
        parsed = parse_all(prompts_on(index), self._parse)
        self._pool.check_room(len(set(parsed) - set(self._objects)))
        self._features.take(frame, peek)
        self._last = None
        for tracked in self._objects.values():
            prune(tracked, index, self._network.memory_config, self._options)
        unfinished = self._unfinished = UnfinishedFrame(index, tuple(self._objects))
        try:
            for step in self._step(index, dict.fromkeys((*self._objects, *parsed)), parsed):
                self._work = () if step is None else (step,)
                yield step
                if self._unfinished is not unfinished or self.is_closed:
                    raise UserError(f"frame {index} was left out: another call came before its last step")
        except GeneratorExit:  # the next call undoes it, under the lock
            raise
        except BaseException:  # also an interrupt: the frame may be pushed again
            self._undo(unfinished)
            raise
        self._unfinished, self._work = None, ()
        self._features.keep()  # `correct` may need it
        self._last, self._num_frames, self._stamp = index, index + 1, stamp
        if parsed:
            self._prompted_frames.add(index)
        yield self._committed_result(index)

    @iterator_of_results
    def stream(
        self, frames: Any, prompts: Mapping[int, Mapping[int, Any]] | PromptsOn | None = None
    ) -> Iterator[Result]:
        """Push every frame; warn at the end of prompts on frames that the session has not had.

        frames   a `VideoReader`, anything that `open_video` opens, or an iterable of arrays or image files
        prompts  by frame number, counted from the session's first frame, then by object; those on frames that do not
                 come have no effect. Or a function that returns those of a frame by its number
        """
        if not callable(prompts) and not isinstance(prompts or {}, Mapping):
            raise PromptError(
                "prompts must be a dict, like {0: {1: runtime.Points([[x, y]], [1])}}: frame, object, prompt"
            )
        known: Mapping[int, Any] = {} if callable(prompts) else prompts or {}
        prompts_on = prompts if callable(prompts) else known.get
        for number, (frame, stamp) in enumerate(iterate_frames(frames), 1):
            steps = self._compute(frame, prompts_on, stamp, partial(peek, frames, number))
            yield from self._lock.run(list, results_of(steps))
        if missed := [frame for frame in known if frame not in self._prompted_frames]:
            had = f"the session has had {self._num_frames} frames, from 0 on"
            warnings.warn(f"prompts on frames {', '.join(map(repr, missed))} were not used: {had}", stacklevel=5)

    @synchronized
    def flush(self) -> list[Result]:
        """Return an empty list: no frame waits for a clip here."""
        self._check_open()
        return []

    @synchronized
    def correct(self, prompts: Mapping[int, Any], frame: int | None = None, clear_old: bool = False) -> Result:
        """Take prompts on the frame that was shown last; return its new result, which later frames build on.

        On a frame that was tracked the prompt corrects with memory; on one that was prompted it refines the prompt.
        `clear_old` False adds points to those given there. An id that is new adds an object. `frame` may name the
        frame. Raises PromptError when it is not the last one: earlier ones have left the live window.
        """
        self._check_open()
        last = self._last
        if last is None:
            raise PromptError("there is no frame to correct; push one first")
        if frame is not None and frame != last:
            raise PromptError(f"frame {frame} has left the live window; only the last one, {last}, takes prompts")
        parsed = parse_all(prompts, self._parse)
        self._pool.check_room(len(set(parsed) - set(self._objects)))
        if not parsed:
            raise PromptError("no prompt: give at least one, like {1: runtime.Points([[x, y]], [1])}")
        for obj, new in parsed.items():
            old = self._objects[obj].point_inputs.get(last) if obj in self._objects and not clear_old else None
            if old is not None and isinstance(new, PointInputs):
                parsed[obj] = self._network.prompt_encoder.check(old + new)
        with self._close_on_error():
            deque(self._step(last, parsed, parsed), maxlen=0)
        return self._committed_result(last)

    @synchronized
    def remove(self, obj: int) -> None:
        """Stop tracking an object. Raises PromptError when there is none of that id."""
        self._check_open()
        self.state(obj)
        self._remove(obj)

    def output(self, obj: int) -> ObjectOutput | None:
        """Return the stored output of an object on the last frame."""
        return self.state(obj).committed(self._num_frames - 1)

    # -- one frame ------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        super()._check_open()
        if self._unfinished is not None:
            self._undo(self._unfinished)

    def _step(
        self, frame: int, ids: Iterable[int], prompts: Mapping[int, PromptInputs]
    ) -> Iterator[DecodeWork | MemoryWork | None]:
        """Predict one frame and write its memory, in one batch: prompted objects, and tracked ones."""
        objects = {obj: self._object(obj) for obj in ids}
        if not objects:
            return
        requests = [self._request(frame, tracked, prompts.get(obj)) for obj, tracked in objects.items()]
        if self._features.encode(requests):
            yield None
        maps, beside = self._features.maps, self._features.beside
        decoding = DecodeWork(self._network, maps, requests)
        yield decoding
        with beside():
            decoding.run_alone()
        fill = self._options.fill_hole_area
        outputs = [object_output(r, d, fill) for r, d in zip(requests, decoding.outputs, strict=True)]
        for (obj, tracked), output in zip(objects.items(), outputs, strict=True):
            store(tracked, frame, prompts.get(obj), output, self._options)
        pairs = list(zip(objects.values(), outputs, strict=True))
        memory = MemoryWork(self._network, maps, pairs)
        yield memory
        with freed_on_error(pairs), beside():
            memory.run_alone()
        memory.finish()

    def _undo(self, unfinished: UnfinishedFrame) -> None:
        """Forget a frame that was not finished, and the objects that it added."""
        self._unfinished = None
        self._cancel_work()
        for obj, tracked in list(self._objects.items()):
            for outputs in (tracked.cond_outputs, tracked.non_cond_outputs):
                tracked.drop(outputs, unfinished.frame)
            if obj not in unfinished.known:
                self._remove(obj)

    def _request(self, frame: int, tracked: TrackedObject, prompt: PromptInputs | None) -> DecodeRequest:
        # a prompt refines or corrects what the object has on this frame
        previous = None if prompt is None else tracked.committed(frame)
        # a first prompt, and its refinements, attend to no memory
        first = previous is None or not self._network.clicks_see_memory
        alone = frame in tracked.cond_outputs or (prompt is not None and first)
        memory = None if alone else self._select_memory(tracked, frame)
        if prompt is None:
            return tracking_request(memory, self._device_masks)
        logits = None if previous is None else previous.low_res_logits
        return prompt_request(self._network, prompt, logits, memory, self._device_masks)

    def _committed_result(self, frame: int) -> Result:
        outputs = {obj: tracked.committed(frame) for obj, tracked in self._objects.items()}
        return self._result(frame, outputs, self._stamp)


def parse_all(prompts: Mapping[int, Any] | None, parse: Callable[[Any], PromptInputs]) -> dict[int, PromptInputs]:
    """Return the prompts of a frame by object. Raises PromptError."""
    if prompts is not None and not isinstance(prompts, Mapping):
        raise PromptError("prompts must be a dict from object id to prompt, like {1: runtime.Points([[x, y]], [1])}")
    return {check_object_id(obj): parse(prompt) for obj, prompt in (prompts or {}).items()}


def prune(tracked: TrackedObject, frame: int, config: MemoryConfig, options: TrackingOptions) -> None:
    """Drop the memory that neither `frame` nor a later one can attend to."""
    stride, limit = options.memory_temporal_stride, options.max_cond_frames_in_attn
    assert limit is not None
    for past in set(tracked.cond_outputs) - set(sorted(tracked.cond_outputs)[-limit:]):
        # one that is no longer among the latest is attended to like any other frame while it is recent
        tracked.store(tracked.non_cond_outputs, past, tracked.cond_outputs.pop(past))
    oldest = min(past for _, past in strided_frames(frame, False, config.num_maskmem, stride))
    for past in list(tracked.non_cond_outputs):
        # a frame between two strides is attended to only by the next one; its pointer, a vector, stays longer
        if past < frame - 1 and (past < oldest or past % stride):
            tracked.free_block(tracked.non_cond_outputs[past])
        if past < min(oldest, frame - config.max_obj_ptrs + 1):
            tracked.drop(tracked.non_cond_outputs, past)


def store(
    tracked: TrackedObject, frame: int, prompt: PromptInputs | None, output: ObjectOutput, options: TrackingOptions
) -> None:
    """Store the output of a frame: as a conditioning frame if it was prompted."""
    corrects = frame in tracked.non_cond_outputs and not options.add_all_frames_to_correct_as_cond
    if output.prompted and not corrects:
        tracked.drop(tracked.non_cond_outputs, frame)
        tracked.store(tracked.cond_outputs, frame, output)
    else:
        tracked.store(tracked.non_cond_outputs, frame, output)
    tracked.point_inputs.clear()
    if isinstance(prompt, PointInputs):
        tracked.point_inputs[frame] = prompt
