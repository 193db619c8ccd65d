"""Run the launches of `plan.py` through Triton: for development, tests and benchmarks. A deployed runtime launches the
same plan from compiled kernels (`runtime/device/cubin.py`)."""

from __future__ import annotations

from collections.abc import Iterable

from . import memory_attention, plan, postprocess, preprocess, window_attention, window_attention_step
from .signatures import ARGUMENT_TYPES

MODULES = (memory_attention, window_attention, window_attention_step, preprocess, postprocess)
KERNELS = {name: getattr(m, name) for m in MODULES for name in ARGUMENT_TYPES if hasattr(m, name)}
"""Every kernel by name."""


def run(launches: Iterable[plan.Launch]) -> None:
    """Enqueue in order, on the current stream of the framework that owns the arrays."""
    for launch in launches:
        KERNELS[launch.kernel][launch.grid](
            *launch.arguments, **launch.constants, num_warps=launch.warps, num_stages=launch.stages
        )
