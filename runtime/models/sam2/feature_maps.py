"""Feature maps of SAM 2's frames at fixed addresses: of several frames side by side, or of the latest one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ...bundle.manifest import TensorSpec
from ...device.base import Device
from ...device.scratch import GrowableBuffers
from ...tracking.requests import ImageFeatures


class FeatureMaps:
    """Scratch for the maps that stages read.

    Where stages are recorded, they read the maps of whatever session at one place, so that sessions share graphs.
    """

    def __init__(self, tensors: Sequence[TensorSpec], device: Device, scratch: GrowableBuffers) -> None:
        self._tensors, self._device, self._scratch = tensors, device, scratch
        self._present: weakref.ref[ImageFeatures] | None = None
        """Features whose copy is in scratch; None: those of several frames, or none."""

    def join(self, frames: Sequence[ImageFeatures]) -> ImageFeatures:
        """Copy the maps of several frames side by side."""
        self._present = None
        out = self._views(len(frames))
        for i, features in enumerate(frames):
            for tensor in self._tensors:
                self._device.copy(getattr(features, tensor.name)[0], getattr(out, tensor.name)[i])
        return out

    def write(self, features: ImageFeatures, encode: Callable[..., None]) -> None:
        """Let `encode` write the maps of a frame, given as its outputs."""
        fixed = self._views(1) if self._is_recorded else features
        encode(**{tensor.name: getattr(fixed, tensor.name) for tensor in self._tensors})
        if fixed is not features:
            for tensor in self._tensors:
                self._device.copy(getattr(fixed, tensor.name), getattr(features, tensor.name))
            self._present = weakref.ref(features)

    def fixed(self, features: ImageFeatures) -> ImageFeatures:
        """Return the maps of a frame, or of several that were joined, where recorded stages read them."""
        if not self._is_recorded or features.embedding.shape[0] > 1:
            return features
        if self._present is None or self._present() is not features:
            self.join([features])
            self._present = weakref.ref(features)
        return self._views(1)

    @property
    def _is_recorded(self) -> bool:
        return self._device.records_stages and self._device.supports_graph_capture

    def _views(self, frames: int) -> ImageFeatures:
        maps: dict[str, Any] = {
            t.name: self._scratch.take("joint_" + t.name, t.resolve({"frames": frames}), t.dtype) for t in self._tensors
        }
        return ImageFeatures(**maps)
