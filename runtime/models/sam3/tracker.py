"""Tracker of SAM 3: SAM 2's stages behind a neck on the detector's trunk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np

from ...device.base import Array
from ...imaging.upsample import SeparableUpsampler, bilinear_matrix
from ...tracking.object_memory import BlockPool
from ...tracking.prompt_inputs import NO_POINTS
from ...tracking.requests import DecodeRequest, ImageFeatures
from ..context import NetworkContext
from ..sam2.network import Sam2
from .detector import Detector
from .mask_prompts import MaskResizer

HIDDEN_LOGIT = np.float32(-10.0)
"""Largest logit, in the memory of prompts, of a pixel that belongs to another object."""

MAX_CONCEPT_OBJECTS = 1 << 16
"""Objects that concepts may find, over all sessions. Each takes memory when it is found."""


class Sam3Tracker(Sam2):
    """Stages, buffers and memory of SAM 3's tracker."""

    features_stage: ClassVar[str] = "tracker_neck"

    def __init__(self, context: NetworkContext, detector: Detector) -> None:
        self._detector = detector
        super().__init__(context)
        self._concept_pool: BlockPool | None = None
        self._trunk = detector.new_features()
        self.mask_side = int(self._specs["mask_prompt"].input("mask").shape[1])

    def _allocate_input(self) -> None:
        """Allocate nothing: the detector has the pixels."""

    @cached_property
    def _to_image(self) -> SeparableUpsampler:
        matrix = bilinear_matrix(self.low_res_side, self._image_size)
        return SeparableUpsampler(matrix, matrix)

    def encode_image(self, frame_hwc: np.ndarray, features: ImageFeatures, resample: str) -> None:
        """Write the feature maps of a frame, uint8 RGB (H,W,3); `resample` as in `imaging.preprocess`."""
        self._detector.encode_image(frame_hwc, resample, self._trunk)
        self.encode_trunk(self._trunk.trunk, features)

    def encode_trunk(self, trunk: Array, features: ImageFeatures) -> None:
        """Write the feature maps of a frame whose trunk map (1,N,W) is there."""
        outputs = {t.name: getattr(features, t.name) for t in self._specs[self.features_stage].outputs}
        self._stages[self.features_stage].run(trunk=trunk, **outputs)

    def concept_pool(self, blocks: int) -> BlockPool:
        """Return the pool of objects that concepts find, whose number only sessions bound."""
        if self._concept_pool is None:
            shape, dtype = self._block_shape()
            self._concept_pool = BlockPool(self.device, MAX_CONCEPT_OBJECTS, blocks, shape, dtype)
        return self._concept_pool

    # -- masks as prompts -----------------------------------------------------------------------------------------

    def mask_resizer(self, size: tuple[int, int]) -> MaskResizer:
        """Return the resizes for a video of `size` (H, W)."""
        return MaskResizer(size, self.mask_side, self.low_res_side)

    def mask_pointers(self, features: ImageFeatures, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the object pointers (D,) of masks (P,P), 0..1, on one frame."""
        requests = [DecodeRequest(NO_POINTS, False, self.encode_dense(mask), skip_no_mem_embed=True) for mask in masks]
        return [output.obj_ptr for output in self.decode(features, requests)]

    def encode_dense(self, mask: np.ndarray) -> np.ndarray:
        """Return the dense prompt (s,s) of a mask (P,P), 0..1."""
        return self._prompts.encode_mask(mask)["prompt_logits"]

    def without_overlaps(self, logits_nss: np.ndarray) -> np.ndarray:
        """Return low-res logits at the side of the image, where each pixel stays with the object of the largest logit.

        One object keeps its low-res logits.
        """
        if len(logits_nss) < 2:
            return logits_nss
        full = self._to_image.logits(logits_nss)
        lost = full.argmax(0) != np.arange(len(full))[:, None, None]
        return np.where(lost, np.minimum(full, HIDDEN_LOGIT), full)
