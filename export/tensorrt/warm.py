"""Compilation of TensorRT-RTX engines for the shapes of a video's first frames, ahead of their first use.

The library compiles an engine again for each new shape. While memory fills up, memory attention has another shape on
each frame, so that a first video would stall on all of them. The schedules themselves run here on a synthetic clip that
fills the memory, and the compiled kernels are saved for the next start (`runtime/backends/rtx_cache.py`).
"""

from __future__ import annotations

from runtime.backends.trt_rtx import TrtRtxBackend
from runtime.bundle.bundle import Bundle
from runtime.engine import Engine
from runtime.models.base import Capability
from runtime.prompts import Points, Text

from ..verify.parity_clip import CLICK, clip_frames, clip_tokens


def warm(bundle: Bundle, backend: TrtRtxBackend) -> int:
    """Run a sentence and a click through as many frames as fill the memory, and a clip more; return their number."""
    settings = bundle.manifest.networks.values()
    window = max(each.get("window", 1) for each in settings)
    memory = max(max(each.get("memory", {"max_obj_ptrs": 0}).values()) for each in settings)
    frames = clip_frames((-(-memory // window) + 1) * window)
    # every shape comes once: there is nothing to replay
    with Engine(bundle, backend, max_objects=2, graphs="off") as engine:
        text = bundle.manifest.text
        if Capability.TEXT_VIDEO in engine.capabilities and text is not None:
            with engine.session([Text(tokens=clip_tokens(text["vocabulary"], text["max_tokens"]))]) as session:
                list(session.stream(frames))
        if Capability.PROMPT_VIDEO in engine.capabilities:
            with engine.live() as live:
                for i, frame in enumerate(frames):
                    live.push(frame, None if i else {1: Points([CLICK], [1], normalized=True)})
    backend.save_cache()
    return len(frames)
