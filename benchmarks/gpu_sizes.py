"""Sizes of everything that `benchmarks.gpu_check` measures; tests take small ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from runtime.kernels import plan

FrameSize = tuple[tuple[int, int], tuple[int, int]]
"""(height, width) of a source, and of what it is resized to."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """SAMWISE at 1024 px: 64 x 64 tokens, 7 memory slots, 16 pointers."""

    memory: plan.MemorySizes = plan.MemorySizes(1, 4096, 7, 64)
    windows: tuple[plan.WindowSizes, ...] = (
        plan.WindowSizes(8, 128, 128, 8),
        plan.WindowSizes(8, 64, 64, 4),
        plan.WindowSizes(8, 32, 32, 2),
        plan.WindowSizes(2, 128, 128, 8),
        plan.WindowSizes(3, 128, 128, 8),
    )
    shipped_windows: int = 3
    """Those of full clips come first."""
    frames: tuple[FrameSize, ...] = (
        ((1080, 1920), (576, 1024)),
        ((360, 640), (576, 1024)),
        ((2160, 3840), (576, 1024)),
    )
    image_size: int = 1024
    frame_rules: tuple[tuple[str, str, int], ...] = (
        ("sam2_video", "bicubic", 1024),
        ("sam2_image", "float", 1024),
        ("sam3_video", "half", 1008),
        ("sam3_image", "uint8", 1008),
        ("refersam", "bilinear", 480),
    )
    """Name, rule of `imaging.preprocess` and side of other networks' input."""
    mask_rules: tuple[tuple[str, int], ...] = (("sam2", 256), ("sam3", 288), ("refersam", 120))
    """Name and side of other networks' logits."""
    matrix: int = 8192
    copy_bytes: int = 2 << 30
    steps: int = 100
    demo_frames: int = 16
    """Frames of nano's demonstration that are compared."""
    video_frames: int = 48
    """Frames of a video that are timed, after as many clips as fill the memory."""
    video_hw: tuple[int, int] = (720, 1280)
    pytorch_frames: int = 24
    pytorch_warm: int = 24
    """Frames before them, which fill the memory."""
    pytorch_variant: str = "base_plus"
    objects: tuple[int, ...] = (1, 4, 16, 64)
    streams: tuple[int, ...] = (1, 4, 16)
    stream_frames: int = 16
    rounds: int = 5
    repeats: int = 10


def sizes(changed: Mapping[str, Any]) -> Sizes:
    """Return the sizes with some changed, which may have been JSON: rows are tuples again."""
    types = {"memory": lambda v: plan.MemorySizes(*v), "windows": lambda v: tuple(plan.WindowSizes(*w) for w in v)}
    known = {f.name for f in fields(Sizes)}
    return Sizes(**{name: types.get(name, _tuples)(value) for name, value in changed.items() if name in known})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
