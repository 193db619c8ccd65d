"""The one door to the compiled kernels in `kernels/`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..errors import BackendError, BundleError, UserError
from .cubin import Kernels

log = logging.getLogger("runtime")

MODES = ("auto", "on", "off")


def choose_kernels(mode: str, bundle: Path, device: Any) -> Kernels | None:
    """The bundle's compiled kernels for this device, or None. `on` raises where there are none, `auto` logs one line."""
    if mode not in MODES:
        raise UserError(f"kernels {mode!r} is not one of {', '.join(MODES)}")
    if mode == "off":
        return None
    capability = getattr(device, "capability", None)
    if capability is None:
        if mode == "on":
            raise BackendError("--kernels on needs a CUDA backend; leave it away on a CPU")
        return None
    try:
        return Kernels(bundle, capability, device.kernel_driver)
    except (BackendError, BundleError) as error:
        if mode == "on":
            raise
        log.info("compiled kernels not used: %s", error)
        return None


def kernel_plans():
    """`plan` and `reference` of `kernels/`: what to launch and the formulas behind it. Needs no Triton."""
    from ..kernels import plan, reference

    return plan, reference
