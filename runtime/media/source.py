"""An opened source of frames, as `VideoReader` reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..results import NO_STAMP, Stamp
from .frame_names import PictureNames


class Frame(NamedTuple):
    """A frame: uint8 RGB (H, W, 3), and when it is shown."""

    array: np.ndarray
    stamp: Stamp = NO_STAMP


@dataclass(slots=True)
class Source:
    """An open source.

    name    name for messages
    fps     frames per second after the stride
    count   number of frames after the stride; None if unknown
    count_is_exact  whether `count` is known and not estimated from a header
    frames  iterator of frames
    live    a camera or network stream
    names   names of the frames, if they are files
    notes   warnings to show at the end of the run
    start   time of the first frame in the file, where its sound counts from
    end     time at which the last frame ends, once all are read; None if only the file says it
    path    the video file, for what else is in it, such as sound
    files   the files that it reads
    left_out  positions of the pictures and pages that cannot be read, after the stride, as far as that is known
    sample_aspect_ratio  width of a pixel by its height, as shown
    """

    name: str
    fps: float
    count: int | None
    frames: Iterator[Frame]
    count_is_exact: bool = False
    live: bool = False
    names: PictureNames | None = None
    notes: list[str] = field(default_factory=list)
    start: float = 0.0
    end: float | None = None
    path: Path | None = None
    files: Sequence[Path] = ()
    left_out: list[int] = field(default_factory=list)
    sample_aspect_ratio: Fraction = Fraction(1)
