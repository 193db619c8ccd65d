"""What SAMWISE's schedule carries from call to call: sentences, batches of them, clips, and what a frame reads and gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...device.scratch import ReadbackBuffer
from ...imaging.gpu import DeviceImages
from ...tracking.memory import Row


@dataclass(slots=True)
class Lane:
    """One sentence on its way through one video, with the feature maps of the current clip."""

    row: Row
    text_0: Any
    verb: Any
    embedding: Any
    embedding_no_memory: Any
    high_res_1: Any
    sparse: Any
    sparse_count: int
    last_fired: int = 0


@dataclass(slots=True)
class Batch:
    """Lanes that are decoded together, with the constants of that batch on the device."""

    lanes: list[Lane]
    sparse_count: Any
    ages: list[Any]
    """`ages[f]` for frames f < 2 * slots, then repeating with period `slots`: (lanes, filled) rows of the embedding."""
    results: ReadbackBuffer
    recorded: dict[tuple[int, ...], Any] = field(default_factory=dict)
    """Due lanes -> the recorded frame; None where it ran plainly once and is recorded next."""


@dataclass(slots=True)
class Reads:
    """What one frame of a batch reads. `due`: lanes whose conditional memory is asked; `memory` is None where
    there is none to look at."""

    embedding: Any
    high_res_1: Any
    picture: Any
    due: list[int]
    without_memory: Any = None
    memory: Any = None
    age: Any = None
    pointers: Any = None


@dataclass(slots=True)
class Clip:
    """The frames that wait or run, and the lanes that look at them."""

    pixels: Any
    high_res_0: Any
    lanes: list[Lane] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    conditional_memory: bool = True
    memory: bool = True
    images: DeviceImages | None = None
    """Frames in and masks out by kernels, once the first frame has told the size."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One frame of a clip, all its lanes, on the host: score (N,), low_res_logits (N, s, s), float32. Where kernels make
    them, masks (N, H, W) bool and boxes (N, 4); then logits are None unless asked for."""

    offset: int
    score: np.ndarray
    low_res_logits: np.ndarray | None
    masks: np.ndarray | None = None
    boxes: np.ndarray | None = None
