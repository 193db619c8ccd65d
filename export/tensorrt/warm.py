"""Compilation of TensorRT-RTX engines for the shapes of a video's first frames, ahead of their first use.

The library compiles an engine again for each new shape. While memory fills up, memory attention has another shape on
each frame, so that a first video would stall on all of them. The schedules themselves run here on a synthetic clip that
fills the memory, and the compiled kernels are saved for the next start (`runtime/backends/rtx_cache.py`).
"""

from __future__ import annotations

from runtime.backends.trt_rtx import TrtRtxBackend
from runtime.bundle.bundle import Bundle
from runtime.engine import Engine
from runtime.models.warm import warm as warm_up


def warm(bundle: Bundle, backend: TrtRtxBackend) -> int:
    """Run a sentence and a click through as many frames as fill the memory, and a clip more; return their number."""
    # every shape comes once: there is nothing to replay
    with Engine(bundle, backend, max_objects=2, graphs="off") as engine:
        num_frames = warm_up(engine.networks, bundle.manifest, times=1)
    backend.save_cache()
    return num_frames
