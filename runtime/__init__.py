"""Language- and prompt-driven video segmentation without PyTorch.

    import runtime
    engine = runtime.load("engines/")
    session = engine.session([runtime.Text("the horse jumping")])
    for result in session.stream(frames):
        result.masks                                     # (objects, height, width) bool

Importing this package loads numpy and nothing heavier; a backend is imported when `load` needs it.
"""

from __future__ import annotations

from pathlib import Path

# `runtime.kernels` is packed into the wheel; in a clone it is the folder `kernels/` beside this package.
__path__.append(str(Path(__file__).resolve().parent.parent))

from .engine import Engine, load
from .errors import BackendError, BundleError, InternalError, PromptError, SamwiseRuntimeError, UserError, VideoError
from .models.samwise.session import Session
from .prompts import Box, Mask, Points, Text
from .results import Result

__all__ = [
    "BackendError",
    "Box",
    "BundleError",
    "Engine",
    "InternalError",
    "Mask",
    "Points",
    "PromptError",
    "Result",
    "SamwiseRuntimeError",
    "Session",
    "Text",
    "UserError",
    "VideoError",
    "load",
]
__version__ = "0.1.0"
