"""The one door to `kernels/`: launch plans and reference formulas (no Triton), and a bundle's compiled kernels."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import BackendError, BundleError, UserError
from ..kernels import plan, plan_step, reference
from .base import Device
from .cubin import Kernels
from .cuda import Cuda

__all__ = ["MODES", "choose_kernels", "plan", "plan_step", "reference"]

log = logging.getLogger("runtime")

MODES = ("auto", "on", "off")


def choose_kernels(mode: str, bundle: Path, device: Device) -> Kernels | None:
    """Return the bundle's compiled kernels for this device, or None. `on` raises without any, `auto` logs one line."""
    if mode not in MODES:
        raise UserError(f"kernels {mode!r} is not one of {', '.join(MODES)}")
    if mode == "off":
        return None
    if not isinstance(device, Cuda):
        if mode == "on":
            raise BackendError("--kernels on needs a CUDA backend; remove it on a CPU")
        return None
    try:
        return Kernels(bundle, device.capability, device.kernel_driver, lambda n: device.empty((n,), "uint8"))
    except (BackendError, BundleError) as error:
        if mode == "on":
            raise
        log.info("compiled kernels not used: %s", error)
        return None
