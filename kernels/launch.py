"""Run the launches of `plan.py` through Triton: for development, tests and benchmarks. A deployed runtime launches the
same plan from compiled kernels (`runtime/device/cubin.py`)."""

from __future__ import annotations

from collections.abc import Iterable

from . import memory_attention, plan, postprocess, preprocess, window_attention

KERNELS = {
    name: getattr(module, name)
    for module, names in (
        (memory_attention, ("memory_attention_prepare", "memory_attention_flash", "memory_attention_combine")),
        (window_attention, ("window_attention_project", "window_attention_attend", "window_attention_fused")),
        (preprocess, ("preprocess",)),
        (postprocess, ("postprocess",)),
    )
    for name in names
}
"""Every kernel by name."""


def run(launches: Iterable[plan.Launch]) -> None:
    """Enqueue in order, on the current stream of the framework that owns the arrays."""
    for launch in launches:
        KERNELS[launch.kernel][launch.grid](
            *launch.arguments, **launch.constants, num_warps=launch.warps, num_stages=launch.stages
        )
