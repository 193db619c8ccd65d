"""Objects in a video whose frames are all known: prompts on any frame, tracking either way, corrections.

The state machine of SAM 2's video predictor, rule by rule: see `tracks.py` for the words.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PromptError, VideoError
from ..media.image_files import check_frame
from ..prompts import Box, Mask, Points
from ..results import Result
from .base import Parsed, Tracker, object_id, whole
from .memory_selection import recall
from .state import Options, Outcome, Track

PICTURES = 4
"""Frames whose maps are kept for the next prompt: some 20 MB each at 1024 pixels."""


class VideoSession(Tracker):
    """Made by `Engine.video`. Frames are decoded and encoded when they are needed.

    Memory: every frame that an object was tracked on can be looked at again, so it is kept, one remembered map (1 MB at
    1024 pixels in float32, half that in half precision) and one low-resolution mask per object and frame. For videos
    without end use `Engine.session`.
    """

    def __init__(self, network: Any, frames: Any, logits: bool, options: Options) -> None:
        super().__init__(network, logits, options, network.pool(), grows=True)
        self._frames = _frames(frames)
        self._start(check_frame(self._frames[0], 0, None).shape[:2])
        self._pictures: OrderedDict[int, Any] = OrderedDict()

    @property
    def num_frames(self) -> int:
        return len(self._frames)

    # -- prompts --------------------------------------------------------------------------------------------------

    def add_points(
        self, frame: int, obj: int, points: Any, labels: Any, clear_old: bool = True, normalized: bool = False
    ) -> Result:
        """Click on an object.

        points (K,2) x, y in source pixels (0..1 if `normalized`); labels (K,) 1 on it, 0 beside it; `clear_old` False
        adds to the clicks (or the box) that the object has on this frame. What was known of its mask there is given to
        the network along with them. Returns all objects on that frame. Raises PromptError.
        """
        return self._prompt(frame, obj, [Points(points, labels, normalized)], clear_old)

    def add_box(
        self, frame: int, obj: int, box: Any, points: Any = None, labels: Any = None, normalized: bool = False
    ) -> Result:
        """Draw a box (left, top, right, bottom) around an object, with or without clicks; replaces what was there."""
        if (points is None) != (labels is None):
            raise PromptError("give points and labels together, or neither")
        clicks = [] if points is None else [Points(points, labels, normalized)]
        return self._prompt(frame, obj, [Box(box, normalized), *clicks], True)

    def add_mask(self, frame: int, obj: int, mask: Any) -> Result:
        """Give an object's mask, (H,W) at source size; replaces clicks on that frame, and is the result there."""
        return self._prompt(frame, obj, Mask(mask), True)

    def _prompt(self, frame: int, obj: int, prompt: Any, clear_old: bool) -> Result:
        self._check_open()
        frame, obj = whole(frame, "frame", 0, self.num_frames - 1), object_id(obj)
        parsed = self._parse(prompt)
        known = self._tracks.get(obj)
        if not isinstance(parsed, np.ndarray):
            old = None if clear_old or known is None else known.clicks.get(frame)
            parsed = parsed if old is None else self._network.checked(old + parsed)
        self._decide(frame, obj, parsed)
        track = self._tracks[obj]
        conditioning = frame not in track.tracked or self._options.add_all_frames_to_correct_as_cond
        return self._show(frame, conditioning)

    def _decide(self, frame: int, obj: int, parsed: Parsed) -> None:
        """Compute the outcome of a prompt and file it as new."""
        track, network = self._tracks.get(obj), self._network
        first = track is None or frame not in track.tracked
        conditioning = first or self._options.add_all_frames_to_correct_as_cond
        logits = None
        if isinstance(parsed, np.ndarray):
            query, logits = network.mask_query(parsed)
        else:
            before = None if track is None else track.shown(frame, conditioning)
            past = None if first else self._recall(track, frame, track.tracked[frame])
            query = network.click_query(parsed, None if before is None else before.low_res_logits, past)
        decoded = network.ask(self._picture(frame), [query])[0]
        outcome = self._outcome(decoded, prompted=True) if logits is None else self._mask_outcome(decoded, logits)
        track = self._track(obj)  # not before: a prompt that is refused leaves no object behind
        track.put(track.new_conditioning if conditioning else track.new_others, frame, outcome)
        if logits is None:
            track.clicks[frame] = parsed
            track.masks.discard(frame)
        else:
            track.masks.add(frame)
            track.clicks.pop(frame, None)

    def clear_prompts(self, frame: int, obj: int) -> Result:
        """Take back an object's prompts on a frame; what was committed there counts as tracked. Raises PromptError."""
        self._check_open()
        frame = whole(frame, "frame", 0, self.num_frames - 1)
        self._clear(frame, self._known(obj))
        return self._show(frame, any(frame in t.new_conditioning for t in self._tracks.values()))

    def _clear(self, frame: int, track: Track) -> None:
        track.clicks.pop(frame, None)
        track.masks.discard(frame)
        track.drop(track.new_conditioning, frame)
        track.drop(track.new_others, frame)
        outcome = track.conditioning.pop(frame, None)
        if outcome is not None:
            track.put(track.others, frame, outcome)
            track.tracked.pop(frame, None)

    def remove_object(self, obj: int) -> list[Result]:
        """Forget an object. Returns the frames that it had prompts on, without it. Raises PromptError."""
        self._check_open()
        track = self._known(obj)
        frames = [*track.clicks, *track.masks]
        self._forget(obj)
        if not self._tracks:
            return []
        return [self._show(f, any(f in t.new_conditioning for t in self._tracks.values())) for f in frames]

    def reset(self) -> None:
        """Forget all objects and prompts; the frames stay."""
        self._check_open()
        self._forget_all()

    def outcome(self, frame: int, obj: int) -> Outcome | None:
        """What is stored for an object on a frame: its latest prompt, else what tracking gave; None if neither."""
        track = self._known(obj)
        return track.new_conditioning.get(frame) or track.new_others.get(frame) or track.stored(frame)

    # -- tracking -------------------------------------------------------------------------------------------------

    def propagate(
        self, start_frame: int | None = None, max_frames: int | None = None, reverse: bool = False
    ) -> Iterator[Result]:
        """Follow all objects, forward from `start_frame` (default: the first frame that a prompt made) or in `reverse`.

        At most `max_frames` frames after the first one. Prompts count from here on. Frames that prompts made are given
        as they are. Objects may be added, refined and removed on the way: removed ones are left out at once, added and
        refined ones count from the next call. Nothing is computed before the first result is asked for.
        Raises PromptError when there is nothing to follow or a number is out of range.
        """
        self._check_open()
        if start_frame is not None:
            start_frame = whole(start_frame, "start_frame", 0, self.num_frames - 1)
        if max_frames is not None and (not isinstance(max_frames, (int, np.integer)) or max_frames < 0):
            raise PromptError(f"max_frames must be a whole number of 0 or more, not {max_frames!r}")
        return self._propagate(start_frame, max_frames, reverse)

    def _propagate(self, start: int | None, most: int | None, reverse: bool) -> Iterator[Result]:
        self._commit()
        followed = dict(self._tracks)
        if start is None:
            start = min(frame for track in followed.values() for frame in track.conditioning)
        most = self.num_frames if most is None else most
        if reverse:
            # the reference gives nothing at all when it starts at frame 0 backwards
            order = range(start, max(start - most, 0) - 1, -1) if start else range(0)
        else:
            order = range(start, min(start + most, self.num_frames - 1) + 1)
        for frame in order:
            self._check_open()
            followed = {obj: track for obj, track in followed.items() if self._tracks.get(obj) is track}
            if not followed:
                return
            yield self._step(frame, followed, reverse)

    def _commit(self) -> None:
        """Make new outcomes count, and write the memory of them."""
        if not self._tracks:
            raise PromptError("there is no object to follow; add points, a box or a mask first")
        for obj, track in self._tracks.items():
            if not track.conditioning and not track.new_conditioning:
                raise PromptError(f"object {obj} has no prompt left; add one or remove the object")
        due: dict[int, list[tuple[Track, Outcome]]] = {}
        for track in self._tracks.values():
            for new, store in ((track.new_others, track.others), (track.new_conditioning, track.conditioning)):
                for frame, outcome in new.items():
                    track.put(store, frame, outcome)
                    due.setdefault(frame, []).append((track, outcome))
                new.clear()
            for frame in track.conditioning:
                track.drop(track.others, frame)
        for frame, pairs in due.items():
            # a correction of a conditioning frame was dropped just now: nobody will look at it
            self._write(frame, [(t, o) for t, o in pairs if t.stored(frame) is o], True)

    def _step(self, frame: int, followed: dict[int, Track], reverse: bool) -> Result:
        waiting = [track for track in followed.values() if frame not in track.conditioning]
        if waiting:
            network = self._network
            queries = [network.tracking(self._recall(track, frame, reverse)) for track in waiting]
            answers = network.ask(self._picture(frame), queries)
            pairs = [(track, self._outcome(decoded)) for track, decoded in zip(waiting, answers)]
            for track, outcome in pairs:
                track.put(track.others, frame, outcome)
            # memory is made of the logits as they were decoded, before holes are filled
            self._write(frame, pairs, False, [decoded.low_res_logits for decoded in answers])
        for track in followed.values():
            track.tracked[frame] = reverse
        return self._result(frame, {obj: track.stored(frame) for obj, track in followed.items()})

    def _write(
        self,
        frame: int,
        pairs: Sequence[tuple[Track, Outcome]],
        prompted: bool,
        logits: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Memory of outcomes on one frame, all objects at once."""
        if not pairs:
            return
        for track, outcome in pairs:
            outcome.page = outcome.page or track.bank.take()
        self._network.remember(
            self._picture(frame),
            logits or [o.low_res_logits for _, o in pairs],
            [prompted] * len(pairs),
            [o.score for _, o in pairs],
            [o.page for _, o in pairs],
        )

    def _recall(self, track: Track, frame: int, reverse: bool) -> Any:
        return recall(track, frame, self.num_frames, reverse, self._network.reach, self._options)

    def _show(self, frame: int, conditioning: bool) -> Result:
        return self._result(frame, {obj: track.shown(frame, conditioning) for obj, track in self._tracks.items()})

    def _picture(self, frame: int) -> Any:
        """The maps of a frame; the latest few are kept."""
        pictures = self._pictures
        if frame in pictures:
            pictures.move_to_end(frame)
            return pictures[frame]
        picture = pictures.popitem(last=False)[1] if len(pictures) == PICTURES else self._network.picture()
        self._network.encode(
            check_frame(self._frames[frame], frame, self._size), picture, self._network.resample["video"]
        )
        pictures[frame] = picture
        return picture


def _frames(frames: Any) -> Sequence[Any]:
    """Frames by number: an array (T,H,W,3), a list of frames or of picture paths, or what `open_video` takes."""
    if isinstance(frames, (str, Path)):
        from ..media.video_reader import open_video

        with open_video(frames) as video:
            return list(video)
    if isinstance(frames, (list, tuple)) and frames and all(isinstance(f, (str, Path)) for f in frames):
        return Files(frames)
    if not isinstance(frames, (list, tuple, np.ndarray, Files)):
        raise VideoError(f"frames must be an array (T,H,W,3), a list of frames, or a path, not {type(frames).__name__}")
    if not len(frames):
        raise VideoError("the video holds no frame")
    return frames


class Files(Sequence):
    """Pictures on disk, read when they are asked for."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        from ..media.video_reader import open_video

        with open_video(self._paths[index]) as picture:
            return next(picture)
