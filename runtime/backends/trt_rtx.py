"""TensorRT-RTX: engines compiled ahead of time on any machine, finished for the GPU when they are loaded. No Hopper.

What the last step of compilation makes is kept for the next start (`rtx_cache`).
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from .rtx_cache import StoredCache, stored
from .trt import TensorRtBackend


class TrtRtxBackend(TensorRtBackend):
    """`--backend tensorrt_rtx`."""

    name = "tensorrt_rtx"
    library = "tensorrt_rtx"
    extra = "tensorrt-rtx"

    def __init__(self, threads: int | None = None, device: Any = None) -> None:
        super().__init__(threads, device)
        self._caches: dict[Path, StoredCache | None] = {}
        # kernels are made at the first run of a shape, so the cache is complete at the end: when the backend goes, or
        # the process does
        self._finish = weakref.finalize(self, save, self._caches)

    def save_cache(self) -> None:
        """Keep now what has been compiled so far; at the end it is kept without being asked."""
        save(self._caches)

    def _context(self, engine: Any, bundle: Path) -> Any:
        trt, config = self.module, engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # kernels for a new shape are made at its first run, not some frames later in a thread: a frame that is recorded
        # as a CUDA graph must already have its final kernels
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if bundle not in self._caches:
            self._caches[bundle] = stored(bundle, self.library, self.version, self.device.capability)
        if (cache := self._caches[bundle]) is not None:
            cache.attach(config)
        return engine.create_execution_context(config)


def save(caches: dict[Path, StoredCache | None]) -> None:
    """Write every cache that has something new."""
    for cache in caches.values():
        if cache is not None:
            cache.save()
