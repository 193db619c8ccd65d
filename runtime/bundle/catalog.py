"""Bundles that can be exported from published checkpoints: what to run when one of them is asked for and not there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

_SIZES = ("tiny", "small", "base_plus", "large")

CATALOG: Mapping[str, tuple[str, str]] = {
    **{f"sam2.1-{size}": ("sam2", f"facebook/sam2.1-hiera-{size.replace('_', '-')}") for size in _SIZES},
    **{f"sam2-{size}": ("sam2", f"facebook/sam2-hiera-{size.replace('_', '-')}") for size in _SIZES},
    "samwise-mevis": ("samwise", "samwise-mevis"),
    "samwise-ytvos": ("samwise", "samwise-ytvos"),
    "samwise-refcoco": ("samwise", "samwise-refcoco"),
    "sam3": ("sam3", "facebook/sam3"),
}
"""Name of the bundle -> network and checkpoint of `python -m export`, which downloads it by this name."""

DEFAULTS = {"sam2": "sam2.1-tiny", "samwise": "samwise-mevis", "sam3": "sam3"}
"""Network -> the bundle to export where only the network is named."""


def export_command(model: str, folder: Path) -> str | None:
    """Return the command that makes the bundle `model`, or one of the network `model`, in `folder`; None if unknown."""
    name = model if model in CATALOG else DEFAULTS.get(model)
    if name is None:
        return None
    network, checkpoint = CATALOG[name]
    return f"python -m export {network} --checkpoint {checkpoint} --name {name} --out {shlex.quote(str(folder))}"
