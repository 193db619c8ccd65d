"""Devices that the sections of `benchmarks.gpu_check` run on; tests put fakes in their place."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.backends import create
from runtime.device.cubin import CudaDriver
from runtime.device.cuda import Cuda

if TYPE_CHECKING:
    from .gpu_bench import Bench


class CudaMachine:
    """The first CUDA device of this machine."""

    def bench(self) -> Bench:
        """Return the device as PyTorch and Triton measure on it. Raises BackendError without a driver."""
        CudaDriver()
        import torch
        import triton

        from .gpu_bench import Cuda

        # tensor descriptors made on the device need a little scratch memory per launch
        triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.set_grad_enabled(False)
        return Cuda()

    def device(self) -> Any:
        """Return the device as the runtime uses it, without a backend. Raises BackendError without cuda-core."""
        return Cuda()

    def backend(self, name: str) -> Any:
        """Return a backend of the runtime."""
        return create(name)

    def network(self, variant: str) -> tuple[Any, Any]:
        """Return (module of `export.networks`, modules of SAMWISE of a published size with random weights)."""
        from .engine_table import network

        return network("samwise", variant)

    def compiled(self, function: Any) -> Any:
        """Return the function under `torch.compile`, for sizes that change."""
        import torch

        return torch.compile(function, dynamic=True)

    def used_bytes(self) -> int:
        """Return bytes of device memory in use by all processes; a context must be current."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ctypes.CDLL("libcuda.so.1").cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def compile_kernels(self, bundle: Path, capability: int) -> int:
        """Compile the kernels of a bundle for a device into its folder; returns their number. Needs Triton."""
        from export import kernels

        return len(kernels.compile_bundle(bundle, [capability], report=lambda line: None))
