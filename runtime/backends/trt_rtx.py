"""TensorRT-RTX: engines built ahead of time on any machine, and compiled for the GPU when they are loaded. No Hopper.

The compiled kernels are saved for the next start (`rtx_cache`).
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from ..device.cuda import Cuda
from .rtx_cache import RuntimeCache, open_cache
from .trt import TensorRtBackend


class TrtRtxBackend(TensorRtBackend):
    """`--backend tensorrt_rtx`."""

    name = "tensorrt_rtx"
    library = "tensorrt_rtx"
    extra = "tensorrt-rtx"

    def __init__(self, threads: int | None = None, device: Cuda | None = None) -> None:
        super().__init__(threads, device)
        self._caches: dict[Path, RuntimeCache | None] = {}
        # kernels are compiled at the first run of a shape, so the cache is complete at the end: of the backend, or of
        # the process
        self.finalizer = weakref.finalize(self, save, self._caches)

    def save_cache(self) -> None:
        """Save the kernels compiled so far; they are saved at the end in any case."""
        save(self._caches)

    def _context(self, engine: Any, bundle: Path) -> Any:
        trt, config = self.module, engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # compile kernels for a new shape at its first run, not some frames later in a thread: a frame that is captured
        # as a CUDA graph must have its final kernels
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if bundle not in self._caches:
            self._caches[bundle] = open_cache(bundle, self.library, self.version, self.device.capability)
        if (cache := self._caches[bundle]) is not None:
            cache.attach(config)
        return engine.create_execution_context(config)


def save(caches: dict[Path, RuntimeCache | None]) -> None:
    """Save every cache with new kernels."""
    for cache in caches.values():
        if cache is not None:
            cache.save()
