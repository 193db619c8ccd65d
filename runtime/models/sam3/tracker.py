"""Tracker of SAM 3: SAM 2's stages behind a neck on the detector's trunk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import ClassVar

import numpy as np

from ...device.base import Array
from ...device.inputs import InputBlock
from ...imaging.gpu import DeviceUpsampler
from ...imaging.upsample import SeparableUpsampler, bilinear_matrix
from ...tracking.object_group import MAX_COND_FRAMES
from ...tracking.prompt_inputs import NO_POINTS, PromptEncoder
from ...tracking.requests import DecodeRequest, ImageFeatures
from ...tracking.state import TrackingOptions
from ..context import NetworkContext
from ..sam2.network import Sam2
from .detector import Detector
from .mask_prompts import MAX_POINTS, MaskResizer, Sam3PromptEncoder

HIDDEN_LOGIT = np.float32(-10.0)
"""Largest logit, in the memory of prompts, of a pixel that belongs to another object."""


class Sam3Tracker(Sam2):
    """Stages, buffers and memory of SAM 3's tracker."""

    clicks_see_memory = False
    tracking_defaults = TrackingOptions(
        fill_hole_area=0, max_cond_frames_in_attn=MAX_COND_FRAMES, add_all_frames_to_correct_as_cond=True
    )
    features_stage: ClassVar[str] = "tracker_neck"

    def __init__(self, context: NetworkContext, detector: Detector) -> None:
        self._detector = detector
        super().__init__(context)
        self.has_small_frames = False  # the detector encodes one at a time
        self._features = detector.frame_features
        self.mask_side = int(self._specs["mask_prompt"].input("mask").shape[1])

    def _make_prompt_encoder(self, max_points: int) -> PromptEncoder:
        return Sam3PromptEncoder(self._bundle, self._image_size, min(max_points, MAX_POINTS))

    def _make_inputs(self) -> InputBlock:
        return self._detector.inputs

    @cached_property
    def _to_image(self) -> SeparableUpsampler:
        matrix = bilinear_matrix(self.low_res_side, self._image_size)
        return SeparableUpsampler(matrix, matrix)

    def encode_image(
        self, frame_hwc: Array, features: ImageFeatures, resample: str, requests: Sequence[DecodeRequest] | None = None
    ) -> None:
        """Write the feature maps of a frame; see `Sam2.encode_image`."""
        if resample == self.resample["image"]:  # an image, which may be searched for concepts as well
            encoded = self._detector.encode_once(frame_hwc, resample)
        else:
            encoded = self._features
            self._detector.encode_image(frame_hwc, resample, encoded, self.inputs_of(requests))
        self.encode_trunk(encoded.trunk, features)

    def encode_trunk(self, trunk: Array, features: ImageFeatures) -> None:
        """Write the feature maps of a frame whose trunk map (1,N,W) is there."""
        self._maps.write(features, partial(self._stages[self.features_stage].run, trunk=trunk))

    # -- masks as prompts -----------------------------------------------------------------------------------------

    def source_upsampler(self, size: tuple[int, int]) -> SeparableUpsampler | DeviceUpsampler:
        """Return the upsampler of low-res logits of the host to masks of `size` (H, W)."""
        return self._detector.upsampler(size)

    def mask_resizer(self, size: tuple[int, int]) -> MaskResizer:
        """Return the resizes for a video of `size` (H, W)."""
        return MaskResizer(size, self.mask_side, self.low_res_side)

    def encode_mask_prompt(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the dense prompt (s,s) of a mask (H,W) at source size, and the low-res logits (s,s) of the mask."""
        height, width = mask.shape
        resizer = self.mask_resizer((height, width))
        (dense,) = self._encode_dense([resizer.to_mask(mask)])
        return dense, resizer.to_logits([mask])[0]

    @cached_property
    def no_object_pointer(self) -> np.ndarray:
        """Object pointer (D,) of an absent object."""
        (encoded,) = self._prompts.encode_masks([np.zeros((self.mask_side, self.mask_side))])
        return encoded["no_obj_ptr"]

    def mask_pointers(self, features: ImageFeatures, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the object pointers (D,) of masks (P,P), 0..1, on one frame; an empty one has that of no object."""
        dense = self._encode_dense(masks)
        requests = [DecodeRequest(NO_POINTS, False, logits, skip_no_mem_embed=True) for logits in dense]
        outputs = self.decode(features, requests)
        return [o.obj_ptr if mask.any() else self.no_object_pointer for o, mask in zip(outputs, masks, strict=True)]

    def _encode_dense(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the dense prompts (s,s) of masks (P,P), 0..1."""
        return [encoded["prompt_logits"] for encoded in self._prompts.encode_masks(masks)]

    def without_overlaps(self, logits_nss: np.ndarray) -> np.ndarray:
        """Return low-res logits at the side of the image, where each pixel stays with the object of the largest logit.

        One object keeps its low-res logits.
        """
        if len(logits_nss) < 2:
            return logits_nss
        full = self._to_image.logits(logits_nss)
        lost = full.argmax(0) != np.arange(len(full))[:, None, None]
        return np.where(lost, np.minimum(full, HIDDEN_LOGIT), full)
