"""Association of a concept's detections with its tracked objects (rules of SAM 3's video model).

Numpy in, decisions out, no network: a session decodes a frame, calls `Association.step`, and carries the decision out.
Masks are low-res logits (s,s), on where > 0; the overlap of two masks is the IoU of their pixels that are on.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..imaging.gpu import DeviceUpsampler
from ..imaging.masks import boxes_and_areas, mask_iou, probability, surroundings
from ..imaging.morphology import fill_holes, remove_specks
from ..imaging.upsample import SeparableUpsampler, bilinear_matrix, enlarger
from .matching import AssociationOptions, Matches, match_detections

SUPPRESSED_LOGIT = np.float32(-10.0)
"""Mask logit of an object that is hidden behind another one, and largest logit of one that loses its memory."""

MEMORY_SCALE = 4
"""Side of a remembered mask, relative to low-res logits."""

BLOCK = 32
"""Sides of the part of low-res logits that is enlarged are multiples of this, so that they are few."""

NEVER = -1
"""`last_occluded` of an object that was never occluded."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Objects that are shown on a frame, K of them by ascending id.

    masks   (K,H,W) bool at the size of the source, without overlaps
    scores  (K,) float32, the score of the detection that an object was born from
    boxes   (K,4) float32 x0, y0, x1, y1 in source pixels, the last pixel included, before overlaps are resolved
    low_res_logits  (K,s,s) float32 logits that the masks are resized from
    score_logits    (K,) float32 of the tracker, or of the detection on the frame of birth
    """

    frame_index: int
    object_ids: tuple[int, ...]
    masks: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    low_res_logits: np.ndarray
    score_logits: np.ndarray


@dataclass(frozen=True, slots=True)
class Decision:
    """What a session does after a frame; N living objects, in the order of `Association.object_ids`.

    births       [(id, query)] detections that become objects
    removed      ids of objects that turned out to be false
    recondition  [(id, query)] objects whose mask is replaced by a detection's, as a prompt
    masks        (N,s,s) float32 logits without holes and specks, hidden objects suppressed
    forgotten    (N,) bool: objects that others cover, which remember an empty mask
    present      (N,) bool: objects that remember at least one pixel
    show         frames that are complete
    """

    births: list[tuple[int, int]]
    removed: list[int]
    recondition: list[tuple[int, int]]
    masks: np.ndarray
    forgotten: np.ndarray
    present: np.ndarray
    show: list[Shown]


@dataclass(slots=True)
class _Object:
    first_frame: int
    score: float
    keep_alive: int
    unmatched_frames: int = 0
    last_occluded: int = NEVER
    duplicate_of: dict[int, int] = field(default_factory=dict)
    """Older object -> number of detections that matched both."""


@dataclass(frozen=True, slots=True)
class _Pending:
    """Objects of a frame until it is shown."""

    frame: int
    ids: list[int]
    logits: np.ndarray
    scores: np.ndarray
    score_logits: np.ndarray


class Association:
    """The objects of one concept in one video of `height` x `width` pixels."""

    def __init__(
        self,
        height: int,
        width: int,
        temporal_disambiguation: bool = True,
        max_objects: int | None = None,
        hide_unmatched_after_hotstart: bool = False,
        ids: Iterator[int] | None = None,
        upsampler: SeparableUpsampler | DeviceUpsampler | None = None,
    ) -> None:
        """`ids`: source of new ids, shared by the concepts of a session; `upsampler`: of this object alone."""
        self.options = AssociationOptions(temporal_disambiguation, max_objects, hide_unmatched_after_hotstart)
        self._size, self._ids = (height, width), itertools.count() if ids is None else ids
        self._objects: dict[int, _Object] = {}
        self._pending: deque[_Pending] = deque()
        self._latest: _Pending | None = None
        self._to_source = upsampler
        # of this object alone, whose calls take turns: an upsampler has buffers
        self._enlarger = functools.lru_cache(maxsize=4)(enlarger)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Ids of living objects, in the order in which `step` takes their tracks."""
        return tuple(self._objects)

    def step(
        self,
        frame_index: int,
        detections: tuple[np.ndarray, np.ndarray] | None,
        tracks: tuple[np.ndarray, np.ndarray],
        prompt: bool = False,
        others: int = 0,
    ) -> Decision:
        """Take all detections of a frame, logits (Q,s,s) and scores (Q,), and the tracks, logits (N,s,s) and score
        logits (N,), before any memory is written.

        detections  None: the frame was not searched, so that no object counts as missed
        prompt      the first of the two passes over the first frame, which is shown at once
        others      objects of other concepts, which count for `max_objects`
        """
        logits = self._cleaned(tracks[0])
        detected, scores = (logits[:0], np.zeros(0, np.float32)) if detections is None else detections
        if detections is None:
            empty = [obj for obj, mask in zip(self._objects, logits, strict=True) if not (mask > 0).any()]
            matches = Matches([], empty=empty)
        else:
            matches = match_detections(detected, scores, list(self._objects), logits, self.options)
        births = self._births(matches.candidates, scores, frame_index, others)
        removed = self._update(matches, frame_index)
        recondition = self._recondition(matches.confident, tracks[1], frame_index)
        self._suppress_occluded(logits, matches.empty, frame_index)
        forgotten, present = self._memory(logits)
        self._queue(frame_index, births, logits, tracks[1], detected, scores)
        for obj in removed:
            del self._objects[obj]
        show = self._release(1 if prompt else max(1, self.options.delay))
        return Decision(births, removed, recondition, logits, forgotten, present, show)

    def flush(self) -> list[Shown]:
        """Return the frames that wait to be shown, at the end of a video."""
        return self._release(1)

    def correct(self, corrections: Mapping[int, tuple[np.ndarray, float]]) -> Shown | None:
        """Replace low-res logits (s,s) and score logits of objects on the latest frame; return what it shows now.

        Its memory and that of the tracker are the caller's. None before the first frame.
        """
        latest = self._latest
        if latest is None:
            return None
        waits = bool(self._pending) and self._pending[-1] is latest
        logits, scores, score_logits = latest.logits.copy(), latest.scores.copy(), latest.score_logits.copy()
        for row, obj in enumerate(latest.ids):
            if obj in corrections:
                logits[row : row + 1] = self._cleaned(corrections[obj][0][None])
                score_logits[row] = corrections[obj][1]
                scores[row] = probability(score_logits[row : row + 1])[0]
        self._latest = _Pending(latest.frame, latest.ids, logits, scores, score_logits)
        if waits:
            self._pending[-1] = self._latest
        return self._show(self._latest)

    def remove(self, object_ids: Sequence[int]) -> None:
        """Remove objects from this frame on; they are not shown on waiting frames either."""
        for obj in object_ids:
            self._objects.pop(obj, None)

    def _cleaned(self, logits_nss: np.ndarray) -> np.ndarray:
        area = self.options.max_hole_area
        cleaned = [remove_specks(fill_holes(logits, area), area) for logits in logits_nss]
        return np.array(cleaned, np.float32).reshape(logits_nss.shape)

    def _births(self, candidates: list[int], scores: np.ndarray, frame: int, others: int) -> list[tuple[int, int]]:
        """Make objects of candidates: in the order of queries, or the best ones first where there are too many."""
        limit, alive = self.options.max_objects, len(self._objects) + others
        if limit is not None and alive + len(candidates) > limit:
            ranked = sorted(candidates, key=lambda query: -scores[query])
            candidates = ranked[: max(0, limit - alive)]
        births = [(next(self._ids), query) for query in candidates]
        for obj, query in births:
            self._objects[obj] = _Object(frame, float(scores[query]), self.options.max_keep_alive)
        return births

    def _update(self, matches: Matches, frame: int) -> list[int]:
        """Count matched and unmatched frames and duplicates. Returns the young objects to remove."""
        o, objects = self.options, self._objects
        young = {obj: state for obj, state in objects.items() if state.first_frame > frame - o.delay}
        for obj in {obj for ids in matches.matched.values() for obj in ids}:
            objects[obj].keep_alive = min(o.max_keep_alive, objects[obj].keep_alive + 1)
        for obj in matches.unmatched:
            objects[obj].keep_alive = max(-1, objects[obj].keep_alive - 1)
            objects[obj].unmatched_frames += 1
        for ids in matches.matched.values():
            head = min(ids, key=lambda obj: objects[obj].first_frame)
            for obj in ids:
                if obj != head and obj in young:
                    objects[obj].duplicate_of[head] = objects[obj].duplicate_of.get(head, 0) + 1
        return [
            obj
            for obj, state in young.items()
            if max(state.unmatched_frames, *state.duplicate_of.values(), 0) >= o.hotstart_limit
        ]

    def _recondition(self, confident: dict[int, int], score_logits: np.ndarray, frame: int) -> list[tuple[int, int]]:
        """Select the objects that a confident detection corrects on this frame."""
        o = self.options
        if not o.temporal_disambiguation or frame % o.recondition_every:
            return []
        logits = dict(zip(self._objects, score_logits, strict=False))  # objects born on this frame have none
        return [(obj, query) for obj, query in confident.items() if logits[obj] > o.recondition_logit]

    def _suppress_occluded(self, logits: np.ndarray, empty: list[int], frame: int) -> None:
        """Suppress, in place, the more recently occluded one of two objects that overlap."""
        states = list(self._objects.values())[: len(logits)]
        overlaps = mask_iou(logits > 0, logits > 0) >= self.options.occlusion_iou
        last = np.array([state.last_occluded for state in states], np.int64)
        hidden: np.ndarray = np.any(overlaps & (last[:, None] > last) & (last > NEVER), axis=1)
        logits[hidden] = SUPPRESSED_LOGIT
        for i, (obj, state) in enumerate(zip(self._objects, states, strict=False)):
            if hidden[i] or obj in empty:
                state.last_occluded = frame

    def _memory(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which objects lose most of their pixels to others, and which have any left to remember."""
        anywhere: np.ndarray = np.any(logits > 0, axis=0)
        rows, columns = surroundings(anywhere, BLOCK)
        part = logits[:, rows, columns]
        full = self._enlarger(*part.shape[1:], MEMORY_SCALE).logits(part)
        on = full > 0
        before = np.count_nonzero(on, (1, 2))
        forgotten = np.zeros(len(logits), bool)
        if len(logits) > 1:
            winner = full.argmax(0)
            after = np.array([np.count_nonzero(on[i] & (winner == i)) for i in range(len(logits))])
            forgotten = after / np.maximum(before, 1) < self.options.shrink_ratio
        return forgotten, (before > 0) & ~forgotten

    def _queue(
        self,
        frame: int,
        births: list[tuple[int, int]],
        logits: np.ndarray,
        score_logits: np.ndarray,
        detected: np.ndarray,
        scores: np.ndarray,
    ) -> None:
        """Keep the masks of a frame until it is shown."""
        queries = [query for _, query in births]
        ids = list(self._objects)
        alive = [i for i, obj in enumerate(ids) if not _hidden(self._objects[obj], self.options)]
        everything = np.concatenate((logits, self._cleaned(detected[queries])))
        certain = np.concatenate((probability(score_logits), scores[queries])).astype(np.float32)
        raw = np.concatenate((score_logits, _logit(scores[queries]))).astype(np.float32)
        self._latest = _Pending(frame, [ids[i] for i in alive], everything[alive], certain[alive], raw[alive])
        self._pending.append(self._latest)

    def _release(self, waiting: int) -> list[Shown]:
        """Show frames until fewer than `waiting` are left; all of them wait still if it is interrupted."""
        ready = list(self._pending)[: max(0, len(self._pending) + 1 - waiting)]
        shown = [self._show(pending) for pending in ready]
        for _ in ready:
            self._pending.popleft()
        return shown

    def _show(self, pending: _Pending) -> Shown:
        """Resize the masks of living objects to the source; each pixel goes to the object of the highest score."""
        if self._to_source is None:
            height, width = (bilinear_matrix(pending.logits.shape[-1], side) for side in self._size)
            self._to_source = SeparableUpsampler(height, width)
        chosen = [i for i, obj in enumerate(pending.ids) if obj in self._objects]
        masks = self._to_source.masks(pending.logits[chosen])
        boxes, areas = boxes_and_areas(masks)
        order = sorted(np.flatnonzero(areas), key=lambda n: pending.ids[chosen[n]])
        rows = [chosen[n] for n in order]
        masks, boxes = masks[order], boxes[order].astype(np.float32)
        boxes[:, 2:] -= 1
        taken = np.zeros(self._size, bool)
        for n in np.argsort(-pending.scores[rows], kind="stable"):
            masks[n] &= ~taken
            taken |= masks[n]
        return Shown(
            frame_index=pending.frame,
            object_ids=tuple(pending.ids[i] for i in rows),
            masks=masks,
            scores=np.array([self._objects[pending.ids[i]].score for i in rows], np.float32),
            boxes=boxes,
            low_res_logits=pending.logits[rows],
            score_logits=pending.score_logits[rows],
        )


def _hidden(state: _Object, options: AssociationOptions) -> bool:
    return options.hide_unmatched_after_hotstart and state.unmatched_frames > 0 and state.keep_alive <= 0


def _logit(probability_n: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability_n.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))
