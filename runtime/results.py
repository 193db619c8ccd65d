"""Results: masks of the objects on a frame, of a prompt on an image, of everything in an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Stamp(NamedTuple):
    """When a frame is shown, and where it is in its source.

    time         seconds from the first frame; of a live source, when it arrived
    pts_seconds  the source's own presentation time
    source_frame  its number in the source, from 0; dropped frames count
    None where it is unknown.
    """

    time: float | None = None
    pts_seconds: float | None = None
    source_frame: int | None = None


NO_STAMP = Stamp()


@dataclass(frozen=True, slots=True)
class Result:
    """Masks of every object on one frame; N objects.

    frame_index     0-based number of the frame in its session
    object_ids      (N,) ids in the order in which the objects were added
    prompt_ids      (N,) the prompt that each object belongs to: texts are numbered from 1; of objects that were pointed
                    at, the object's own id
    masks           (N, H, W) bool at the size of the source frame
    scores          (N,) float32, probability that the object is visible; of ReferSAM, which has none, the predicted IoU
    score_logits    (N,) float32, `scores` before the sigmoid; None where scores are no probabilities
    ious            (N,) float32 predicted IoU of the mask, NaN where it was given; None where the network predicts none
    boxes           (N, 4) float32 x0, y0, x1, y1 in source pixels, x1 and y1 exclusive; zeros where the mask is empty
    low_res_logits  (N, s, s) float32 logits of the decoder, s = image size / 4; None unless requested
    coarse_logits   (N, s, s) float32, ReferSAM's mask before SAM's decoder; None for other networks, or as above
    time            seconds at which the frame is shown, from the first one: as given to `push`, or those of the video
                    that was opened; None where there are none
    pts_seconds     the source's own presentation time of the frame, and
    source_frame    its number in the source, where dropped frames count: of a video that was opened, else None
    presence        probability that the concept is there at all; None for other prompts
    semantic_mask   (H, W) bool, the concept as a whole; None unless requested
    """

    frame_index: int
    object_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    masks: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    score_logits: np.ndarray | None = None
    ious: np.ndarray | None = None
    low_res_logits: np.ndarray | None = None
    coarse_logits: np.ndarray | None = None
    time: float | None = None
    pts_seconds: float | None = None
    source_frame: int | None = None
    presence: float | None = None
    semantic_mask: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One mask: (H,W) bool; `box` x0, y0, x1, y1 exclusive; `area` pixels; `score` predicted IoU; `stability`; the
    `point` (x, y) that prompted it, and the `crop` x0, y0, x1, y1 that was encoded."""

    mask: np.ndarray
    box: tuple[int, int, int, int]
    area: int
    score: float
    stability: float
    point: tuple[float, float]
    crop: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Masks of one or several prompts; unpacks into `masks, scores, low_res`.

    masks    (M,H,W) bool, M = 3 candidates or 1; (B,M,H,W) for a batch of B prompts
    scores   (M,) or (B,M) float32, predicted IoU
    low_res  (M,s,s) or (B,M,s,s) float32 logits, clamped to +-32
    """

    masks: np.ndarray
    scores: np.ndarray
    low_res: np.ndarray

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.masks, self.scores, self.low_res))
