"""Conversion of decoded frames into uint8 RGB in display orientation."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from .image_files import check_size, composite_over_black

if TYPE_CHECKING:
    import av
    from av.video.stream import VideoStream


def to_rgb(frame: av.VideoFrame, name: str) -> np.ndarray:
    """Return a frame as uint8 RGB (H, W, 3): transparency over black, rotated and mirrored as its display matrix says.

    Raises VideoError if it is too large. `name` is that of the source.
    """
    check_size(frame.height, frame.width, name)
    if frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components):
        array = composite_over_black(frame.to_ndarray(format="rgba"))
    else:
        array = frame.to_ndarray(format="rgb24")
    transpose, mirror, flip = orientation(frame)
    if transpose:
        array = array.swapaxes(0, 1)
    array = array[:: -1 if flip else 1, :: -1 if mirror else 1]
    return np.ascontiguousarray(array)  # also for one-pixel-wide frames, whose rows come with gaps


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return (transpose, mirror columns, flip rows), to be done in this order, for a frame's display matrix.

    A matrix counts as the nearest of the eight orientations: scaling, shear and odd angles are ignored.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    matrix = np.frombuffer(
        bytes(data), "=i4", 9
    )  # a b u, c d v, x y w: (a x + c y, b x + d y) is where (x, y) is shown
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


def aspect_ratio(stream: VideoStream, frame: av.VideoFrame) -> Fraction:
    """Return the width of a pixel by its height, as shown."""
    ratio = Fraction(stream.sample_aspect_ratio or 1)
    return 1 / ratio if orientation(frame)[0] else ratio
