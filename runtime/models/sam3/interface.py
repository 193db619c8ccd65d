"""Interface of SAM 3's tracker for its sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ...device.base import Array
from ...device.inputs import HostArrays
from ...imaging.gpu import DeviceUpsampler
from ...imaging.upsample import SeparableUpsampler
from ...tracking.requests import DecodeRequest, ImageFeatures
from ...tracking.step import TrackerNetwork
from ..sam2.mask_decoding import Decoding
from .mask_prompts import MaskResizer


class ConceptTracker(TrackerNetwork, Protocol):
    """Members of SAM 3's tracker that the session uses besides those of every tracker."""

    @property
    def no_object_pointer(self) -> np.ndarray:
        """Object pointer (D,) of an absent object."""

    def encode_trunk(self, trunk: Array, features: ImageFeatures) -> None:
        """Write the feature maps of a frame whose trunk map is there."""

    def inputs_of(self, requests: Sequence[DecodeRequest] | None) -> Sequence[tuple[object, HostArrays]]:
        """Return what decoding of requests takes, for `InputBlock.upload`."""

    def start_decoding(
        self,
        features: ImageFeatures,
        requests: Sequence[DecodeRequest],
        all_logits: bool = False,
        remember: bool = False,
    ) -> Decoding:
        """Enqueue what `decode` does; its `finish` waits."""

    def source_upsampler(self, size: tuple[int, int]) -> SeparableUpsampler | DeviceUpsampler:
        """Return the upsampler of low-res logits of the host to masks of `size` (H, W)."""

    def mask_resizer(self, size: tuple[int, int]) -> MaskResizer:
        """Return the resizes for a video of `size` (H, W)."""

    def mask_pointers(self, features: ImageFeatures, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the object pointers of masks (P,P) on one frame."""

    def without_overlaps(self, logits_nss: np.ndarray) -> np.ndarray:
        """Return the logits to remember of masks that were given on one frame."""
