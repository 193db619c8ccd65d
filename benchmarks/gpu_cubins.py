"""Compiled kernels, launched by `runtime/device/cubin.py`, compared with Triton's launches of the same plan."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from runtime.device.cubin import FOLDER, Kernels
from runtime.kernels import launch, plan

from . import bench_kernel_memory_attention as memory_attention
from . import bench_kernel_window_attention as window_attention
from .gpu_bench import Bench, scratch


def check(
    bench: Bench, sizes: plan.MemorySizes, windows: tuple[plan.WindowSizes, ...], store: Callable[[str, Any], Any]
) -> None:
    """Compile for this device, load, launch, compare: largest difference to Triton's launch of the same kernels.

    `store` is called with each result and its name.
    """
    from export import kernels as aot

    configs = [c for c in (plan.FLASH[bench.capability], plan.FLASH_TMA.get(bench.capability)) if c is not None]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder)

        def launches(capability: int) -> Iterator[plan.Launch]:
            for config in configs:
                yield from aot.memory_launches(sizes, capability, config)
            for window in windows:
                yield from aot.window_launches(window.frames, window.patch, window.channels, capability)

        entries = aot.compile_kernels(bundle / FOLDER, [bench.capability], launches, report=lambda line: None)
        kernels = Kernels(
            bundle, bench.capability, allocate=lambda n: torch.empty(n, dtype=torch.uint8, device=bench.device)
        )
        store("compiled", len(entries))
        case = memory_attention.make_case(bench, sizes)
        for config in configs:
            name = "memory_attention" + "_tma" * config.tma
            store(name, compare(bench, kernels, case.launches(config), case.out))
        for window in windows:
            inputs = window_attention.make_inputs(bench, window)
            out = torch.empty_like(inputs["x"])
            arrays = scratch(bench, window.scratch())
            planned = plan.window_attention(inputs, arrays, out, window, plan.WINDOW[bench.capability])
            store(f"window_attention_p{window.patch}", compare(bench, kernels, planned, out))


def compare(bench: Bench, kernels: Kernels, launches: list[plan.Launch], out: torch.Tensor) -> dict[str, float]:
    """Run both ways on the current stream."""
    launch.run(launches)
    expected = out.clone()
    out.fill_(float("nan"))
    bound = kernels.bind(launches)
    bound.run(torch.cuda.current_stream().cuda_stream)
    difference = float((out.float() - expected.float()).abs().max())
    return {
        "largest_difference": difference,
        "seconds": bench.seconds(lambda: bound.run(torch.cuda.current_stream().cuda_stream)),
    }
