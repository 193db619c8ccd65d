"""Objects in a video that has no end: frames as they come, prompts at any time, memory bounded for ever.

The rules are those of a known video whose future is empty. A prompt on the frame that is pushed makes a conditioning
frame of it; a prompt given afterwards, on the frame just shown, refines that, or corrects what was tracked. Of an
object's past only what can still be looked at is kept: the frames just before, and the latest conditioning frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import PromptError, UserError
from ..media.image_files import check_frame
from ..results import Result
from .base import Parsed, Tracker, object_id
from .memory_selection import recall, strided
from .state import Options, Outcome, Track

CONDITIONING = 4
"""Conditioning frames that an object keeps unless `max_cond_frames_in_attn` says otherwise."""


class LiveSession(Tracker):
    """Made by `Engine.session` without prompts. Every push returns the result of its frame."""

    def __init__(self, network: Any, logits: bool, options: Options) -> None:
        options = replace(options, max_cond_frames_in_attn=options.max_cond_frames_in_attn or CONDITIONING)
        # what one frame looks at, the frame itself, and a last frame that is no multiple of the stride
        pages = options.max_cond_frames_in_attn + network.reach.slots + 1
        super().__init__(network, logits, options, network.pool(pages), grows=False)
        self._picture = network.picture()
        self._frame: np.ndarray | None = None
        self._encoded = False
        self._waiting: tuple[np.ndarray, dict[int, Parsed]] | None = None
        self._frames = 0

    # -- frames ---------------------------------------------------------------------------------------------------

    def put(self, frame: Any, prompts: Mapping[int, Any] | None = None) -> None:
        """Take one frame and compute nothing yet: `Engine.step` or `push` does. Raises as `push` does."""
        self._check_open()
        if self._waiting is not None:
            raise UserError("a frame is waiting: call Engine.step() or push() before the next one")
        frame = check_frame(frame, self._frames, self._size)
        if self._size is None:
            self._start(frame.shape[:2])
        parsed = self._parse_all(prompts)
        self._waiting = frame, parsed

    def push(self, frame: Any, prompts: Mapping[int, Any] | None = None) -> list[Result]:
        """Take one frame, uint8 RGB (H,W,3), with prompts on it by object; returns its result, in a list of one.

        A prompt is a `Points`, `Box` or `Mask`, or a list of a box and points; an id that is new adds an object. Raises
        VideoError for what is no frame or changes size, PromptError for a bad prompt (the frame is not taken then),
        UserError when there is no room for another object.
        """
        self.put(frame, prompts)
        return list(self.advance())

    def stream(self, frames: Iterable[Any], prompts: Mapping[int, Mapping[int, Any]] | None = None) -> Iterator[Result]:
        """Push every frame; `prompts` by frame number, counted from the session's first frame, then by object."""
        for frame in frames:
            yield from self.push(frame, (prompts or {}).get(self._frames))

    def flush(self) -> list[Result]:
        """Nothing ever waits for a clip here: the result of a frame that was only put, or an empty list."""
        self._check_open()
        return list(self.advance())

    @property
    def ready(self) -> bool:
        """Whether a frame is waiting."""
        return self._waiting is not None

    def advance(self) -> Iterator[Result]:
        """Run the frame that waits."""
        if self._waiting is None:
            return
        (frame, prompts), self._waiting = self._waiting, None
        self._frame, self._encoded = frame, False
        index, self._frames = self._frames, self._frames + 1
        for track in self._tracks.values():
            self._prune(track, index)
        for obj in prompts:
            self._track(obj)
        self._compute(index, prompts, {})
        yield self._show(index)

    def correct(self, prompts: Mapping[int, Any], frame: int | None = None, clear_old: bool = False) -> Result:
        """Prompts on the frame that was shown last, after it was seen; returns it anew, and what follows builds on it.

        On a frame that was tracked the prompt corrects with memory; on one that was prompted it refines the prompt.
        `clear_old` False adds clicks to those given there. An id that is new adds an object. `frame` may name the
        frame. Raises PromptError when it is not the last one: earlier ones have left the live window.
        """
        self._check_open()
        last = self._frames - 1
        if last < 0 or self._waiting is not None:
            raise PromptError("there is no frame to correct yet; push one first")
        if frame is not None and frame != last:
            raise PromptError(f"frame {frame} has left the live window; only the last one, {last}, takes prompts")
        parsed = self._parse_all(prompts)
        if not parsed:
            raise PromptError("no prompt: give at least one, like {1: runtime.Points([[x, y]], [1])}")
        for obj, new in parsed.items():
            old = self._tracks[obj].clicks.get(last) if obj in self._tracks and not clear_old else None
            if old is not None and not isinstance(new, np.ndarray):
                parsed[obj] = self._network.checked(old + new)
        for obj in parsed:
            self._track(obj)
        self._compute(last, parsed, {obj: self._tracks[obj].stored(last) for obj in parsed})
        return self._show(last)

    def remove(self, obj: int) -> None:
        """Stop following an object. Raises PromptError when there is none of that id."""
        self._check_open()
        self._known(obj)
        self._forget(obj)

    def outcome(self, obj: int) -> Outcome | None:
        """What is stored for an object on the last frame."""
        return self._known(obj).stored(self._frames - 1)

    # -- one frame ------------------------------------------------------------------------------------------------

    def _parse_all(self, prompts: Mapping[int, Any] | None) -> dict[int, Parsed]:
        if prompts is not None and not isinstance(prompts, Mapping):
            raise PromptError(
                "prompts must be a dict from object id to prompt, like {1: runtime.Points([[x, y]], [1])}"
            )
        parsed = {object_id(obj): self._parse(prompt) for obj, prompt in (prompts or {}).items()}
        new = len(set(parsed) - set(self._tracks))
        if new > self._pool.capacity - self._pool.open:
            raise UserError(
                f"no room for {new} more objects, {len(self._tracks)} are followed; remove some or load "
                "the engine with a larger max_objects"
            )
        return parsed

    def _compute(self, frame: int, prompts: Mapping[int, Parsed], before: Mapping[int, Outcome | None]) -> None:
        """Everything about one frame, one batch: prompted objects, and on a new frame the tracked ones."""
        network, queries, given = self._network, [], []
        # a correction looks at what was there before; a first prompt, and its refinements, look at no memory
        asked = prompts if before else self._tracks
        for obj in asked:
            track, parsed = self._tracks[obj], prompts.get(obj)
            alone = frame in track.conditioning or (parsed is not None and before.get(obj) is None)
            past, mask = None if alone else self._recall(track, frame), None
            if parsed is None:
                query = network.tracking(past)
            elif isinstance(parsed, np.ndarray):
                query, mask = network.mask_query(parsed)
            else:
                old = before.get(obj)
                query = network.click_query(parsed, None if old is None else old.low_res_logits, past)
            queries.append(query)
            given.append((obj, parsed, mask))
        if not queries:
            return
        if not self._encoded:
            network.encode(self._frame, self._picture, network.resample["video"])
            self._encoded = True
        for (obj, parsed, mask), decoded in zip(given, answers := network.ask(self._picture, queries)):
            self._file(frame, self._tracks[obj], parsed, decoded, mask)
        self._write(frame, [obj for obj, _, _ in given], answers)

    def _file(self, frame: int, track: Track, parsed: Parsed | None, decoded: Any, mask: np.ndarray | None) -> None:
        prompted = parsed is not None
        outcome = self._outcome(decoded, prompted) if mask is None else self._mask_outcome(decoded, mask)
        corrected = frame in track.others and not self._options.add_all_frames_to_correct_as_cond
        if prompted and not corrected:
            track.drop(track.others, frame)
            track.put(track.conditioning, frame, outcome)
        else:
            track.put(track.others, frame, outcome)
        track.clicks.clear()
        if prompted and mask is None:
            track.clicks[frame] = parsed

    def _write(self, frame: int, objects: list[int], answers: list[Any]) -> None:
        outcomes = [self._tracks[obj].stored(frame) for obj in objects]
        for obj, outcome in zip(objects, outcomes):
            outcome.page = self._tracks[obj].bank.take()
        logits = [o.low_res_logits if o.prompted else d.low_res_logits for o, d in zip(outcomes, answers)]
        self._network.remember(
            self._picture,
            logits,
            [o.prompted for o in outcomes],
            [o.score for o in outcomes],
            [o.page for o in outcomes],
        )

    def _recall(self, track: Track, frame: int) -> Any:
        return recall(track, frame, None, False, self._network.reach, self._options)

    def _prune(self, track: Track, frame: int) -> None:
        """Forget what neither `frame` nor a later one can look at."""
        reach, stride = self._network.reach, self._options.memory_temporal_stride
        latest = sorted(track.conditioning)[-self._options.max_cond_frames_in_attn :]
        for past in set(track.conditioning) - set(latest):
            # one that is no longer among the latest is looked at like any other frame while it is recent
            track.put(track.others, past, track.conditioning.pop(past))
        oldest = min(past for _, past in strided(frame, False, reach.slots, stride))
        for past in list(track.others):
            # a frame that no stride meets is looked at only by the next one; its pointer, a vector, stays longer
            if past < frame - 1 and (past < oldest or past % stride):
                track.release(track.others[past])
            if past < min(oldest, frame - reach.pointers + 1):
                track.drop(track.others, past)

    def _show(self, frame: int) -> Result:
        return self._result(frame, {obj: track.stored(frame) for obj, track in self._tracks.items()})
