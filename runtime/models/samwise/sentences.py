"""Sentences of a text session: those that began with the same frame have a clip, and tracks in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from ...device.base import Array
from ...device.workers import MAX_OBJECTS_BESIDE
from ...errors import UserError
from ...imaging.masks import probability
from ...prompts import Text
from ...results import Result, Stamp
from .clip import Clip, PendingFrame
from .frames_ahead import FramesAhead
from .joint_runner import FrameWork, JointRunner
from .state import TextTrack, TrackBatch
from .transforms import ImageSettings, Size, Transforms

NAMES = ("score", "iou", "low_res_logits")
"""What a result takes of the outputs of the decoder."""


class SentenceGroup:
    """Computes the frames of its sentences; the frames of groups are numbered from their own first one."""

    def __init__(self, runner: JointRunner, clip: Clip, batches: Sequence[TrackBatch]) -> None:
        self._runner, self.clip, self.batches = runner, clip, batches
        self.object_ids: tuple[int, ...] = ()
        self.first_frame = 0
        """Number of its first frame in the video."""
        self.removed: set[int] = set()
        """Objects that are computed, because the rounding of the others depends on it, and not shown."""

    @property
    def tracks(self) -> list[TextTrack]:
        """Tracks of all batches, in the order of `object_ids`."""
        return [track for batch in self.batches for track in batch.tracks]

    @property
    def shown(self) -> tuple[int, ...]:
        """Objects that were not removed."""
        return tuple(i for i in self.object_ids if i not in self.removed)

    def allocate_outputs(self, transforms: Transforms | None) -> None:
        """Allocate what the transforms of the video, if they are known, read back besides the decoder's outputs."""
        outputs = transforms.outputs if transforms is not None else ()
        for batch in self.batches if outputs else ():
            batch.readback = self._runner.single.new_readback(len(batch.tracks), outputs)

    def works(self, frame: PendingFrame, transforms: Transforms) -> list[FrameWork]:
        """Return the work of a frame, one for each batch."""
        number = 0 if frame.is_still else frame.number
        return self._runner.works(self.batches, self.clip.decoded, number, frame.offset, transforms)

    def result(self, parts: Sequence[Mapping[str, np.ndarray]], transforms: Transforms) -> dict[str, np.ndarray] | None:
        """Return the arrays of the result of the next frame, of the objects shown; None where it has none."""
        frame = self.clip.next_frame
        self.clip.forget_frame()
        if not frame.is_shown:
            return None
        read = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        masks, boxes = transforms.postprocess_masks(read)
        found = {"masks": masks, "boxes": boxes, **{name: read[name] for name in NAMES if name in read}}
        if not self.removed:
            return found
        rows = [at for at, i in enumerate(self.object_ids) if i not in self.removed]
        return {name: array[rows] for name, array in found.items()}

    def close(self) -> None:
        """Release the memory of its objects."""
        self.clip.stop()
        for track in self.tracks:
            track.close()


def is_alone(groups: Sequence[SentenceGroup]) -> bool:
    """Tell whether one batch of tracks is all there is."""
    return len(groups) == len(groups[0].batches) == 1


class ResultReader:
    """Makes results of the frames of groups, at the size of the video."""

    def __init__(self, images: ImageSettings, logits: bool, decode_ahead: bool) -> None:
        """`decode_ahead`: see `TextOptions`; with one batch of tracks only."""
        self._images, self._logits, self.decode_ahead = images, logits, decode_ahead
        self._size: Size | None = None
        self.transforms: Transforms | None = None
        """None before the first frame."""
        self._work: Sequence[FrameWork] = ()
        """What was given out and has no outcome yet."""

    def check_frame(self, frame: Any, number: int) -> Array:
        """Return a frame as an array; the first one sets the size of the video. Raises VideoError."""
        frame = self._images.frame_reader.check(frame, number, self._size)
        if self.transforms is None:
            self._size = frame.shape[:2]
            self.transforms = self._images.transforms(self._size, self._logits)
        return frame

    def works(self, group: SentenceGroup, frame: PendingFrame | None = None) -> Sequence[FrameWork]:
        """Return the work of the next frame of a group, or of `frame`, one for each batch."""
        assert self.transforms is not None
        self._work = self._work or group.works(frame or group.clip.next_frame, self.transforms)
        return self._work

    def cancel(self) -> None:
        """Cancel the work that was given out."""
        for work in self._work:
            work.is_cancelled = True
        self._work = ()

    def read(self, group: SentenceGroup, alone: bool) -> dict[str, np.ndarray] | None:
        """Decode the next frame of a group; if it is `alone`, the frame behind may be launched before."""
        work, self._work = self.works(group), ()
        assert self.transforms is not None
        # batches share the scratch that `remember` reads
        if self.decode_ahead and alone and (behind := group.clip.frame_behind) is not None:
            for part in work:
                part.begin_read()
            for part in self.works(group, behind):
                part.start_ahead()
        parts = [part.read() for part in work]
        for part in self._work:
            part.settle()
        return group.result(parts, self.transforms)

    def decode(self, groups: Sequence[SentenceGroup]) -> Result:
        """Decode the next frame of every group."""
        frame, first = groups[0].clip.next_frame, groups[0].first_frame
        ids = tuple(i for group in groups for i in group.shown)
        alone = is_alone(groups)
        parts = [part for group in groups if (part := self.read(group, alone)) is not None]
        read = parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        return Result(
            frame_index=first + frame.number,
            object_ids=ids,
            prompt_ids=ids,
            masks=read["masks"],
            scores=probability(read["score"]),
            score_logits=read["score"],
            ious=read["iou"],
            boxes=read["boxes"],
            low_res_logits=read["low_res_logits"] if self._logits else None,
            **frame.stamp._asdict(),
        )


class Sentences:
    """All sentences of a video: groups that have begun, which are computed in turns, and those that wait for a clip."""

    def __init__(
        self,
        open_group: Callable[[Sequence[Text]], SentenceGroup],
        prompts: Sequence[Text],
        reader: ResultReader,
        ahead: FramesAhead,
    ) -> None:
        """`open_group` allocates what sentences that begin together need."""
        self._open_group, self._reader, self._ahead = open_group, reader, ahead
        self._decodes_beside = False
        self._last_id = self._num_frames = 0
        self._is_closed = False
        self._groups: list[SentenceGroup] = []
        """The first one encodes the frames for the others as well."""
        self._waiting: list[SentenceGroup] = []
        self._results: deque[Result] = deque()
        """Results of the clip that were computed before they were taken."""
        self.add(prompts)
        self._start_waiting()

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Objects that were not removed."""
        return tuple(i for group in (*self._groups, *self._waiting) for i in group.shown)

    @property
    def device_logits(self) -> list[Array]:
        """Low-res logits of the latest result, one array per batch. Raises UserError with `decode_ahead`."""
        if self._reader.decode_ahead and is_alone(self._groups):
            raise UserError(
                "device_logits hold the frame behind with decode_ahead, which overwrites them; remove decode_ahead"
            )
        return [batch.readback.arrays["low_res_logits"] for group in self._groups for batch in group.batches]

    def add(self, prompts: Sequence[Text]) -> tuple[int, ...]:
        """Let sentences wait for the next clip; return their object ids. Raises UserError with `encode_ahead`."""
        if self._groups and self._groups[0].clip.runs_ahead:
            raise UserError("no sentence can be added with encode_ahead; open the session without it")
        group = self._open_group(prompts)
        group.object_ids = tuple(range(self._last_id + 1, self._last_id + 1 + len(prompts)))
        self._last_id += len(prompts)
        self._waiting.append(group)
        return group.object_ids

    def remove(self, object_id: int) -> None:
        """Leave an object out of results; release the memory of its group with the last one. Raises UserError."""
        ids = self.object_ids
        if object_id not in ids:
            raise UserError(f"no object {object_id!r}; objects of this session: {', '.join(map(str, ids))}")
        if len(ids) == 1:
            raise UserError(f"object {object_id} is the last one; close the session, or add another sentence before")
        group = next(g for g in (*self._groups, *self._waiting) if object_id in g.object_ids)
        group.removed.add(object_id)
        if not group.shown:
            _drop(group, self._groups, self._waiting)

    def _start_waiting(self) -> None:
        for group in self._waiting:
            group.first_frame = self._num_frames
            group.allocate_outputs(self._reader.transforms)
        self._groups, self._waiting = [*self._groups, *self._waiting], []
        for group in [group for group in self._groups if not group.shown]:
            _drop(group, self._groups, self._waiting)

    def check_frame(self, frame: Any) -> Array:
        """Return the next frame as an array; with the first one, allocate what its size needs. Raises VideoError."""
        is_first = self._reader.transforms is None
        frame = self._reader.check_frame(frame, self._num_frames)
        for group in self._groups if is_first else ():
            group.allocate_outputs(self._reader.transforms)
        return frame

    def take(self, frame: Array, stamp: Stamp) -> deque[Result]:
        """Take a frame that was checked. Return where the results of its clip go if it is complete."""
        assert self._reader.transforms is not None
        if self._groups[0].clip.is_empty:
            self._start_waiting()
        first, *others = (group.clip for group in self._groups)
        preprocess = self._reader.transforms.preprocess_frame
        encoded = first.add(frame, preprocess, stamp, is_shared=bool(others), encoded=self._ahead.take_maps(frame))
        for clip in others:
            clip.add(frame, preprocess, stamp, encoded=encoded)
        self._num_frames += 1
        results = self.begin() if first.is_full else deque()
        assert results is not None, "there is the frame"
        return results

    def begin(self) -> deque[Result] | None:
        """Begin with the frames that wait, complete or not, and return where their results go; None without any."""
        if self._groups[0].clip.is_empty:
            return None
        self._results = deque()  # an iteration over the clip before this one keeps its own
        for group in self._groups:
            group.clip.begin()
        return self._results

    @property
    def is_computed(self) -> bool:
        """Whether all frames that have begun are decoded."""
        return all(group.clip.is_computed for group in self._groups)

    def has_more(self, results: deque[Result]) -> bool:
        """Tell whether the clip whose results go there has more."""
        return bool(results) or (results is self._results and not self.is_computed)

    def advance(self) -> None:
        """Run one stage of the encoding of a clip, or decode the next frame."""
        pending = [group for group in self._groups if not group.clip.is_computed]
        encoding = next((group for group in pending if not group.clip.is_encoded), None)
        again = next((group for group in pending if encoding is None and not group.clip.next_frame.is_shown), None)
        if encoding is not None:
            encoding.clip.advance()
        elif again is not None:
            self._reader.read(again, is_alone(self._groups))
        else:
            with self._ahead.beside() if self._decodes_beside else nullcontext():
                self._results.append(self._reader.decode(self._groups))

    def look_ahead(self, frames: Sequence[object] | None) -> None:
        """Learn which frames come next, for cores that the decoding of a clip leaves; None: that will not be told."""
        clips = [group.clip for group in self._groups]
        small = self._ahead.is_useful and len(self.object_ids) <= MAX_OBJECTS_BESIDE
        self._decodes_beside = frames is not None and small
        if frames and self._decodes_beside and all(clip.is_encoded for clip in clips):
            assert self._reader.transforms is not None
            self._ahead.begin(frames, self._reader.transforms.preprocess_frame)

    def next_work(self) -> Sequence[FrameWork]:
        """Return the work of the next frame, if one batch of tracks is all there is."""
        ready = (
            not self._is_closed
            and is_alone(self._groups)
            and self._groups[0].clip.is_encoded
            and not self._reader.decode_ahead
        )
        return self._reader.works(self._groups[0]) if ready else ()

    def close(self) -> None:
        """Release the memory of all objects."""
        self._is_closed = True
        self._ahead.drop()
        self._reader.cancel()
        for group in (*self._groups, *self._waiting):
            group.close()


def _drop(group: SentenceGroup, groups: list[SentenceGroup], waiting: list[SentenceGroup]) -> None:
    """Close a group, unless it is the only one: that encodes frames until the sentences that wait have begun."""
    if groups != [group]:
        (groups if group in groups else waiting).remove(group)
        group.close()
