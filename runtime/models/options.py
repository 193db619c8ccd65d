"""Options of sessions with sentences or concepts and of automatic masks; those of tracking: `tracking/state.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from ..errors import UserError, check_types

LATENCIES = ("clip", "low")


@dataclass(frozen=True, slots=True)
class TextOptions:
    """Options of sessions with sentences.

    conditional_memory  False switches the conditional memory encoder off; None and True leave it as exported
    memory              False decodes every frame alone (an approximation)
    window              frames that are fused with text at a time, fewer than trained so that results come sooner (an
                        approximation); None: as trained
    latency             "clip": results come when a clip of `window` frames is complete; "low": each frame has its
                        result at once, from the frames up to it (an approximation)
    decode_ahead        on CUDA, launch a frame of a clip before the result of the one in front of it is read; no effect
                        on a CPU, and on more sentences than a batch holds
    encode_ahead        on CUDA with graphs (ONNX Runtime), encode a clip on a second stream while the one in front of
                        it is decoded, so that results come a clip later and no sentence can be added; no effect on a
                        CPU
    reference_quirks    decode a clip of one frame, such as the last one of a video of 9 frames, without its memory, as
                        the official code does
    Raises UserError for a value of another type, or another latency.
    """

    conditional_memory: bool | None = None
    memory: bool = True
    window: int | None = None
    latency: str = "clip"
    decode_ahead: bool = False
    encode_ahead: bool = False
    reference_quirks: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.latency not in LATENCIES:
            raise UserError(f"latency must be one of {', '.join(LATENCIES)}, not {self.latency!r}")


@dataclass(frozen=True, slots=True)
class ConceptOptions:
    """Options of sessions with concepts.

    temporal_disambiguation  results come 14 frames late, so that objects which turn out to be false until then never
                             appear; confident detections correct their objects
    max_objects   objects at a time, over all concepts of the session; None: no limit, so give one for a video without
                  end
    num_frames    number of frames to come; needed for results as the official code's only below 16
    detect_every  frames from one search for objects to the next; between them objects are only followed (an
                  approximation)
    hide_unmatched_after_hotstart  an object is not shown while the detector misses it for long (off in the official
                  configurations)
    Raises UserError for a value out of range.
    """

    temporal_disambiguation: bool = True
    max_objects: int | None = None
    num_frames: int | None = None
    detect_every: int = 1
    hide_unmatched_after_hotstart: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("max_objects", "num_frames", "detect_every"):
            value = getattr(self, name)
            if value is None and name != "detect_every":
                continue
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} must be a whole number of 1 or more, not {value!r}")


@dataclass(frozen=True, slots=True)
class AutomaticMaskOptions:
    """Options of automatic masks; names and defaults are SAM 2's.

    points_per_side         points per side of the grid
    points_per_batch        points whose masks are held at image size at a time
    pred_iou_thresh         least predicted IoU
    stability_score_thresh  least IoU of the mask at logit +offset with that at -offset
    box_nms_thresh          most overlap (IoU of boxes) of two masks
    crop_n_layers           layer n adds 4^n overlapping crops
    crop_nms_thresh         most overlap of masks from different crops; those of smaller crops win
    crop_overlap_ratio      overlap of the crops of layer 1, as part of the short side
    crop_n_points_downscale_factor  the grid of layer n has points_per_side / factor^n points per side
    min_mask_region_area    holes and islands of at most this many low-resolution pixels are removed; 0 keeps them
    use_m2m                 refine every mask by a second pass with the mask as prompt
    multimask_output        three candidates per point
    Raises UserError for a value out of range.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    use_m2m: bool = False
    multimask_output: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        for name, low in (
            ("points_per_side", 1),
            ("points_per_batch", 1),
            ("crop_n_layers", 0),
            ("crop_n_points_downscale_factor", 1),
            ("min_mask_region_area", 0),
        ):
            if not isinstance(getattr(self, name), (int, np.integer)) or getattr(self, name) < low:
                raise UserError(f"{name} must be a whole number of {low} or more, not {getattr(self, name)!r}")


class AutomaticMaskKeywords(TypedDict, total=False):
    """`AutomaticMaskOptions` as keywords."""

    points_per_side: int
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    min_mask_region_area: int
    use_m2m: bool
    multimask_output: bool
