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

from .engine import Engine, load  # noqa: E402
from .errors import BackendError, BundleError, PromptError, RuntimeFault, UserError, VideoError  # noqa: E402
from .prompt import Box, Mask, Points, Text  # noqa: E402
from .result import Result  # noqa: E402
from .session import Session  # noqa: E402

__all__ = [
    "BackendError",
    "Box",
    "BundleError",
    "Engine",
    "Mask",
    "Points",
    "PromptError",
    "Result",
    "RuntimeFault",
    "Session",
    "Text",
    "UserError",
    "VideoError",
    "load",
]
__version__ = "0.1.0"
