"""Synthetic test clip: a bright disc that crosses a moving sine pattern."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Disc(NamedTuple):
    """A disc whose centre moves along the row `y`; `x` maps a frame number to the centre's column. Pixels."""

    x: Callable[[int], float]
    y: float
    radius: float
    colour: tuple[int, int, int]


def synthetic_clip(
    num_frames: int, height: int, width: int, disc: Disc, wavelength_xy: tuple[float, float]
) -> list[np.ndarray]:
    """Return `num_frames` frames, uint8 RGB (H,W,3). `wavelength_xy`: pixels per radian in the red channel."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    wave_x, wave_y = wavelength_xy
    frames = []
    for t in range(num_frames):
        waves = (np.sin(x / (wave_x + 5 * c) + 0.4 * t) * np.cos(y / (wave_y - 2 * c) - 0.3 * t) for c in range(3))
        base = np.stack(list(waves), -1)
        inside = (x - disc.x(t)) ** 2 + (y - disc.y) ** 2 < disc.radius**2
        frames.append(np.where(inside[..., None], disc.colour, 110 + 80 * base).clip(0, 255).astype(np.uint8))
    return frames
