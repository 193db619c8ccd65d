"""Matching of a concept's detections with its tracks on one frame (rules of SAM 3's video model).

Masks are low-res logits (s,s), on where > 0; the overlap of two masks is the IoU of their pixels that are on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..imaging.masks import mask_iou


@dataclass(frozen=True, slots=True)
class AssociationOptions:
    """Thresholds, with the values of the released model.

    temporal_disambiguation  results are delayed by `hotstart_delay` frames, and objects that turn out to be false until
                             then are removed; tracked masks are corrected by confident detections
    max_objects     objects at a time; None: no limit
    hide_unmatched_after_hotstart  an object is not shown while detections miss it (see `keep_alive`)
    detection       score of a detection that is looked at
    nms_iou         of two detections that overlap by more, the better one is kept
    new_score       score of a detection that becomes an object; `match_iou`: overlap with a track that prevents it
    unmatched_iou   a track is unmatched where no detection overlaps by this much
    confident_score, confident_iou  a detection that may correct a track, every `recondition_every` frames, where the
                             track's score logit is above `recondition_logit`
    hotstart_limit  a young object that was unmatched, or a duplicate, on this many frames is removed
    max_keep_alive  frames for which an object without detections is shown
    occlusion_iou   overlap at which the object that was occluded more recently is hidden
    shrink_ratio    an object that keeps less than this part of its pixels against others does not remember them
    max_hole_area   holes and specks of at most this many low-res pixels are removed
    """

    temporal_disambiguation: bool = True
    max_objects: int | None = None
    hide_unmatched_after_hotstart: bool = False
    detection: float = 0.5
    nms_iou: float = 0.1
    new_score: float = 0.7
    match_iou: float = 0.1
    unmatched_iou: float = 0.5
    confident_score: float = 0.8
    confident_iou: float = 0.8
    recondition_every: int = 16
    recondition_logit: float = 0.8
    hotstart_delay: int = 15
    hotstart_limit: int = 8
    max_keep_alive: int = 30
    occlusion_iou: float = 0.7
    shrink_ratio: float = 0.3
    max_hole_area: int = 16

    @property
    def delay(self) -> int:
        """Frames for which a new object may turn out to be false."""
        return self.hotstart_delay if self.temporal_disambiguation else 0


@dataclass(frozen=True, slots=True)
class Matches:
    """Result of comparing detections with tracks; `matched` and `confident` hold object ids and queries."""

    candidates: list[int]
    matched: dict[int, list[int]] = field(default_factory=dict)
    unmatched: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    confident: dict[int, int] = field(default_factory=dict)


def match_detections(
    detected_qss: np.ndarray,
    scores_q: np.ndarray,
    ids: Sequence[int],
    tracks_nss: np.ndarray,
    options: AssociationOptions,
) -> Matches:
    """Compare all detections of a frame with the tracks of the objects `ids`. Without objects every detection that is
    kept is a candidate."""
    kept = non_maximum_suppression(detected_qss, scores_q, options)
    if not ids:
        return Matches(kept)
    on = tracks_nss > 0
    overlap = mask_iou(detected_qss[kept] > 0, on)
    visible = on.any((1, 2))
    missed = visible & (overlap.max(0, initial=0) < options.unmatched_iou)
    found = Matches(
        candidates=[],
        unmatched=[ids[int(i)] for i in np.flatnonzero(missed)],
        empty=[ids[int(i)] for i in np.flatnonzero(~visible)],
    )
    for query, row in zip(kept, overlap, strict=True):
        matched = row >= options.match_iou
        if matched.any():
            found.matched[query] = [ids[int(i)] for i in np.flatnonzero(matched)]
        elif scores_q[query] >= options.new_score:
            found.candidates.append(query)
        if scores_q[query] >= options.confident_score and row.max() >= options.confident_iou:
            found.confident[ids[int(row.argmax())]] = query
    return found


def non_maximum_suppression(logits_qss: np.ndarray, scores_q: np.ndarray, options: AssociationOptions) -> list[int]:
    """Return the queries above the detection score that no better one overlaps, in their order."""
    found = np.flatnonzero(scores_q > options.detection)
    ranked = found[np.argsort(-scores_q[found], kind="stable")]
    overlap = mask_iou(logits_qss[ranked] > 0, logits_qss[ranked] > 0) > options.nms_iou
    kept: list[int] = []
    for n in range(len(ranked)):
        if not overlap[n, kept].any():
            kept.append(n)
    return sorted(int(query) for query in ranked[kept])
