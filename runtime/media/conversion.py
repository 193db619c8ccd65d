"""Conversion of decoded frames into uint8 RGB in display orientation."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from .image_files import check_size, composite_over_black

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream


class Converter:
    """Converts the frames of a source: transparency over black, rotated and mirrored as the display matrix says."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rotation: int | None = None
        self._orientation = False, False, False

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Return a frame as uint8 RGB (H, W, 3). Raises VideoError if it is too large."""
        check_size(frame.height, frame.width, self._name)
        if frame.rotation != self._rotation:  # of a matrix that changes later, only the rotation is followed
            self._rotation, self._orientation = frame.rotation, orientation(frame)
        if frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components):
            array = composite_over_black(frame.to_ndarray(format="rgba"))
        else:
            array = frame.to_ndarray(format="rgb24")
        transpose, mirror, flip = self._orientation
        if transpose:
            array = array.swapaxes(0, 1)
        array = array[:: -1 if flip else 1, :: -1 if mirror else 1]
        return np.ascontiguousarray(array)  # also for one-pixel-wide frames, whose rows come with gaps

    def aspect_ratio(self, stream: VideoStream) -> Fraction:
        """Return the width of a pixel by its height, as shown."""
        ratio = Fraction(stream.sample_aspect_ratio or 1)
        return 1 / ratio if self._orientation[0] else ratio


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return (transpose, mirror columns, flip rows), to be done in this order, for a frame's display matrix.

    A matrix counts as the nearest of the eight orientations: scaling, shear and odd angles are ignored.
    """
    try:  # the side data of a frame keep it until the garbage collector comes: read them from a small copy
        data: Any = frame.reformat(width=2, height=2, format="gray").side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for other side data of this frame
        turns = round(frame.rotation / 90) % 4
        return turns % 2 == 1, turns in (2, 3), turns in (1, 2)
    if data is None:
        return False, False, False
    matrix = np.frombuffer(bytes(data), "=i4", 9)  # a b u, c d v, x y w: shows (x, y) at (a x + c y, b x + d y)
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0
