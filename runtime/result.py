"""What a caller gets for one frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Result:
    """Masks of every object on one frame.

    frame_index     0-based number of the frame in its session
    object_ids      (N,) ids in the order in which the objects were added; text prompts are numbered from 1
    masks           (N, H, W) bool at the size of the source frame
    scores          (N,) float32, probability that the object is visible; of ReferSAM the IoU it expects, as it comes
    score_logits    (N,) float32, the same before the sigmoid (ReferSAM has none: the same numbers again)
    boxes           (N, 4) float32 x0, y0, x1, y1 in source pixels, x1 and y1 exclusive; zeros where the mask is empty
    low_res_logits  (N, s, s) float32 logits of the decoder, s = image size / 4; None unless logits were asked for
    coarse_logits   (N, s, s) float32, ReferSAM's mask before SAM's decoder; None for other networks, or as above
    """

    frame_index: int
    object_ids: tuple[int, ...]
    masks: np.ndarray
    scores: np.ndarray
    score_logits: np.ndarray
    boxes: np.ndarray
    low_res_logits: np.ndarray | None = None
    coarse_logits: np.ndarray | None = None
