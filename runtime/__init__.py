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

from .backends.base import Stage
from .engine import Engine, load
from .errors import (
    BackendError,
    BundleError,
    Busy,
    InternalError,
    PromptError,
    SamwiseRuntimeError,
    UserError,
    VideoError,
)
from .image import ImagePredictor
from .media.video_reader import VideoReader, open_video
from .models.base import Capability
from .models.options import AutomaticMaskOptions, ConceptOptions, TextOptions
from .models.sam3.session import ConceptSession
from .models.samwise.session import TextSession
from .prompts import Box, Concept, Mask, Points, Text
from .results import Prediction, Result, Segment, Stamp
from .scheduler import Delivery, Outcome, Scheduler, SchedulerGroup, Stream, StreamOptions
from .tracking.live import LiveSession
from .tracking.state import ObjectOutput, TrackedObject, TrackingOptions
from .tracking.video import VideoSession
from .tracking.work import Work

__all__ = [
    "AutomaticMaskOptions",
    "BackendError",
    "Box",
    "BundleError",
    "Busy",
    "Capability",
    "Concept",
    "ConceptOptions",
    "ConceptSession",
    "Delivery",
    "Engine",
    "ImagePredictor",
    "InternalError",
    "LiveSession",
    "Mask",
    "ObjectOutput",
    "Outcome",
    "Points",
    "Prediction",
    "PromptError",
    "Result",
    "SamwiseRuntimeError",
    "Scheduler",
    "SchedulerGroup",
    "Segment",
    "Stage",
    "Stamp",
    "Stream",
    "StreamOptions",
    "Text",
    "TextOptions",
    "TextSession",
    "TrackedObject",
    "TrackingOptions",
    "UserError",
    "VideoError",
    "VideoReader",
    "VideoSession",
    "Work",
    "load",
    "open_video",
]
__version__ = "0.1.0"
