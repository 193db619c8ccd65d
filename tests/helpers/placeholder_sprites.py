"""Plain shapes in place of nano's sprite atlas, which needs a font."""

import zlib
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from export.nano import sprites
from export.nano.grammar import NOUNS


@lru_cache
def placeholder_sprites() -> np.ndarray:
    """Draw an array as `sprites.load` returns it: a polygon of its own form and colour per noun."""
    drawn = []
    for i, noun in enumerate(NOUNS):
        rng = np.random.default_rng(zlib.crc32(noun.encode()))
        canvas = Image.new("RGBA", (170, 170))
        pen, corners = ImageDraw.Draw(canvas), 3 + i % 7
        even = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners)) * 0.3 + even * 0.9
        radii = rng.uniform(45, 80, corners)
        points = np.stack((85 + radii * np.cos(angles), 85 + radii * np.sin(angles)), 1)
        pen.polygon(list(map(tuple, points.tolist())), fill=(*rng.integers(30, 255, 3).tolist(), 255))
        pen.ellipse((70, 60, 95, 85), fill=(*rng.integers(30, 255, 3).tolist(), 255))
        drawn.append(sprites.fit(canvas))
    return np.stack(drawn)
