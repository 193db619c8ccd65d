"""Loading of the split stages of a bundle."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import numpy as np

from ..bundle.bundle import Bundle
from ..device.cubin import Kernels
from ..device.cuda import Cuda
from ..device.scratch import GrowableBuffers
from ..errors import BundleError, summarize
from .base import Backend, load_stage
from .split_stage import MemoryAttention, SplitResources, SplitStage, WindowAttention, WindowAttentionStep

log = logging.getLogger("runtime")

KERNELS: dict[str, type[SplitStage]] = {
    "memory_attention": MemoryAttention,
    "window_attention": WindowAttention,
    "window_attention_step": WindowAttentionStep,
}
"""Kernels that `Manifest.split_stages` may name."""


def load_split_stages(
    bundle: Bundle, backend: Backend, kernels: Kernels | None, mode: str, objects: int
) -> dict[str, SplitStage]:
    """Load the bundle's split stages by the name of the stage that each replaces; `objects`: rows of the memory pool.

    All of them where `mode` is `on`. Otherwise none, which is logged: until a GPU has been measured, `auto` runs the
    whole graphs. Raises BundleError for an invalid entry, BackendError for a kernel that is missing.
    """
    split, device = bundle.manifest.split_stages, backend.device
    if not split or kernels is None or not isinstance(device, Cuda):
        return {}
    if mode != "on":
        log.info("whole graphs for %s; --kernels on runs their attention in compiled kernels", ", ".join(split))
        return {}
    limits = {symbol: high for symbol, (_, high) in bundle.manifest.bounds.items()}
    limits["objects"] = min(objects, limits.get("objects", objects))
    resources = SplitResources(device, kernels, GrowableBuffers(device), limits)
    return {name: _load(bundle, backend, name, resources) for name in split}


def _load(bundle: Bundle, backend: Backend, name: str, resources: SplitResources) -> SplitStage:
    split = bundle.manifest.split_stages[name]
    try:
        spec, split_stage = bundle.manifest.stages[name], KERNELS[split.kernel]
        subgraphs = [load_stage(bundle, backend, subgraph) for subgraph in split.subgraphs]
        return split_stage(spec, split, subgraphs, _constants(bundle, split.constants, name), resources)
    except (KeyError, TypeError, ValueError, IndexError, StopIteration, ArithmeticError) as error:
        raise BundleError(
            f"{bundle.folder}: split_stages.{name} is not understood ({type(error).__name__}: {error}); "
            "export the bundle again, or remove --kernels on"
        ) from None


def _constants(bundle: Bundle, file: str, stage: str) -> dict[str, np.ndarray]:
    """Read the arrays of a split stage's file. Raises BundleError."""
    if file not in bundle.manifest.files:
        raise BundleError(
            f"{bundle.folder}: split_stages.{stage} names {file!r}, which is not among the bundle's files; "
            "export it again"
        )
    path = Path(bundle.folder) / file
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise BundleError(f"{path}: not readable ({summarize(error)}); export the bundle again") from None
