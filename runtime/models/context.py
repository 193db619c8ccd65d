"""Parts that a network is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..bundle.bundle import Bundle
from ..device.base import Device
from ..device.cubin import Kernels

if TYPE_CHECKING:
    from ..backends.base import Stage


@dataclass(frozen=True, slots=True)
class NetworkContext:
    """Parts of a network: its bundle, its settings and stages, the device and kernels to run on.

    max_objects  objects that may be tracked at a time, over all sessions
    kernels      compiled kernels for frames in and masks out, None to do both on the host
    stages       take arrays of the device, and as inputs also ones of the host
    """

    bundle: Bundle
    settings: Mapping[str, Any]
    stages: Mapping[str, Stage]
    device: Device
    max_objects: int
    kernels: Kernels | None = None
