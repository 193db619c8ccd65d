"""TensorRT-RTX: engines compiled ahead of time on any machine, finished for the GPU when they are loaded. No Hopper."""

from __future__ import annotations

from typing import Any

from .tensorrt_stage import TensorRtBackend


class TrtRtxBackend(TensorRtBackend):
    """`--backend tensorrt_rtx`."""

    name = "tensorrt_rtx"
    library = "tensorrt_rtx"
    extra = "tensorrt-rtx"

    def _context(self, engine: Any) -> Any:
        trt, config = self._trt, engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # kernels for a new shape are made at its first run, not some frames later in a thread: a frame that is recorded
        # as a CUDA graph must already have its final kernels
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        return engine.create_execution_context(config)
