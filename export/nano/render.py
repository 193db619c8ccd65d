"""Rendering of scenes: background, sprites in depth order, blur, noise and compression. Numpy and Pillow only."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter
from PIL.Image import Resampling, Transform

from . import sprites
from .grammar import NOUNS
from .scene import SIDE, Actor, Scene

MARGIN = 64
"""Units of background beyond each edge of the image, for the camera to pan into."""
_OPAQUE = [0] * 128 + [255] * 128
"""Lookup table: alpha -> 255 from one half on."""


class Renderer:
    """Renders clips of one image size. Caches tinted and down-scaled sprites."""

    def __init__(self, size: int) -> None:
        self.size, self.scale, self.atlas = size, size / SIDE, sprites.load()
        self.sprite = lru_cache(maxsize=4096)(self._sprite)
        self.grain = (np.random.default_rng(0).standard_normal((size + 64, size + 64, 3)) * 32).astype(np.int8)

    def render(self, scene: Scene, rng: Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Render a scene to frames uint8 (T,s,s,3), the instance map uint8 (T,s,s) with 0 for background and i+1 for
        actor i, and areas int (T,N) of the actors without occlusion."""
        background, effects = self._background(rng), CameraEffects(rng)
        frames = np.empty((scene.frames, self.size, self.size, 3), np.uint8)
        instance_map = np.empty((scene.frames, self.size, self.size), np.uint8)
        areas = np.zeros((scene.frames, len(scene.actors)), np.int64)
        order = sorted(range(len(scene.actors)), key=lambda i: scene.actors[i].depth)
        for t in range(scene.frames):
            image, labels = self._crop(background, scene.camera[t]), Image.new("L", (self.size, self.size))
            for i in order:
                areas[t, i] = self._draw_actor(image, labels, scene.actors[i], t, i + 1, effects.motion_blur)
            frames[t] = effects.apply(image, self.grain, rng)
            instance_map[t] = np.asarray(labels)
        return frames, instance_map, areas

    def _sprite(self, noun: str, colour: str | None, flip: bool, shrink: int) -> Image.Image:
        pixels = self.atlas[NOUNS.index(noun)]
        pixels = pixels if colour is None else sprites.tint(pixels, colour)
        image = Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if flip else pixels))
        return image.reduce(shrink) if shrink > 1 else image

    def _draw_actor(
        self, image: Image.Image, labels: Image.Image, actor: Actor, t: int, label: int, motion_blur: bool
    ) -> int:
        """Draw an actor into the image and the instance map. Returns its area without occlusion, in pixels."""
        side = actor.size * actor.scale[t] * self.scale
        # reduce small sprites before sampling: bilinear sampling alone would skip pixels
        shrink = 4 if side < 0.28 * sprites.SIDE else 2 if side < 0.55 * sprites.SIDE else 1
        sprite = self.sprite(actor.noun, actor.colour, actor.flip, shrink)
        reach = int(np.ceil(side * 0.72)) + 2
        cx, cy = actor.x[t] * self.scale, actor.y[t] * self.scale
        left, top = int(np.floor(cx)) - reach, int(np.floor(cy)) - reach
        if max(left, top) >= self.size or min(left, top) + 2 * reach <= 0:
            return 0

        def patch_at(dx: float, dy: float) -> Image.Image:
            zoom = sprite.width / side  # the sprite fills its square except for a thin margin
            return _rotate(sprite, 2 * reach, cx - left + dx, cy - top + dy, zoom, actor.angle[t])

        patch = patch_at(0, 0)
        inside = patch.getchannel("A").point(_OPAQUE)
        labels.paste(label, (left, top), inside)
        dx, dy = ((p[t] - p[max(t - 1, 0)]) * self.scale * 0.2 for p in (actor.x, actor.y))
        if motion_blur and 0.5 <= np.hypot(dx, dy) <= 6 * self.scale:
            # copies a little before and after, premultiplied: otherwise the transparent parts would darken the rim
            before, after = (patch_at(s * dx, s * dy).convert("RGBa") for s in (-1, 1))
            patch = Image.blend(Image.blend(before, after, 0.5), patch.convert("RGBa"), 1 / 3).convert("RGBA")
        image.paste(patch, (left, top), patch)
        return inside.histogram()[255]

    def _crop(self, background: Image.Image, shift: np.ndarray) -> Image.Image:
        """Crop the background to the part that the camera sees."""
        grain = background.width / ((SIDE + 2 * MARGIN) * self.scale)
        x, y = (np.clip(MARGIN - shift, 0, 2 * MARGIN) * self.scale * grain).tolist()
        matrix = (grain, 0, x, 0, grain, y)
        return background.transform((self.size, self.size), Transform.AFFINE, matrix, Resampling.BILINEAR)

    def _background(self, rng: Generator) -> Image.Image:
        """Draw a larger image of smooth noise, stripes and clutter: sharp, or blurred and then of half the size."""
        blur = rng.uniform(0.6, 1.6) if rng.random() < 0.6 else 0.0
        side = int((SIDE + 2 * MARGIN) * self.scale) // (2 if blur else 1)
        base = rng.uniform(20, 235, 3)
        noise = np.zeros((48, 48, 3), np.float32)
        for cells in (3, 7, 17):
            coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
            coarse = 0.5 * coarse + 0.5 * coarse.mean(axis=-1, keepdims=True)
            planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(coarse, 2, 0)]
            smooth = [np.asarray(plane.resize((48, 48), Resampling.BICUBIC)) for plane in planes]
            noise += np.stack(smooth, -1) * rng.uniform(4, 30)
        canvas = Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))
        canvas = canvas.resize((side, side), Resampling.BILINEAR)
        pen = ImageDraw.Draw(canvas)
        if rng.random() < 0.3:
            _draw_stripes(pen, side, base, rng)
        for _ in range(int(rng.integers(0, 26))):
            _draw_clutter(pen, side, base, rng)
        return canvas.filter(ImageFilter.GaussianBlur(blur * self.scale)) if blur else canvas


def _draw_stripes(pen: ImageDraw.ImageDraw, side: int, base: np.ndarray, rng: Generator) -> None:
    step, slant = int(rng.integers(side // 24, side // 7)), rng.uniform(-1, 1) * side
    colour = _similar_colour(base, rng, 28)
    for x in range(-side, 2 * side, step):
        pen.line((x, 0, x + slant, side), fill=colour, width=max(1, step // 3))


def _draw_clutter(pen: ImageDraw.ImageDraw, side: int, base: np.ndarray, rng: Generator) -> None:
    x, y = rng.uniform(0, side, 2)
    w, h = rng.uniform(0.015, 0.12, 2) * side
    colour, shape = _similar_colour(base, rng, 70), rng.integers(3)
    if shape == 1:
        pen.polygon([(x - w, y - h), (x + w, y - 0.4 * h), (x + 0.3 * w, y + h)], fill=colour)
    else:
        (pen.rectangle if shape else pen.ellipse)((x - w, y - h, x + w, y + h), fill=colour)


def _similar_colour(base: np.ndarray, rng: Generator, spread: float) -> tuple[int, ...]:
    return tuple(np.clip(base + rng.normal(0, spread, 3), 0, 255).astype(int).tolist())


def _rotate(sprite: Image.Image, side: int, cx: float, cy: float, zoom: float, angle: float) -> Image.Image:
    """Rotate the sprite by `angle` degrees about its centre, which is placed at (cx, cy) of a square patch."""
    c, s = np.cos(np.radians(angle)) * zoom, np.sin(np.radians(angle)) * zoom
    centre = sprite.width / 2
    matrix = (c, s, centre - c * cx - s * cy, -s, c, centre + s * cx - c * cy)
    return sprite.transform((side, side), Transform.AFFINE, matrix, Resampling.BILINEAR)


class CameraEffects:
    """Exposure, blur, noise and compression of one clip, drawn at random."""

    def __init__(self, rng: Generator) -> None:
        self.motion_blur = bool(rng.random() < 0.35)
        self.blur = float(rng.uniform(0.4, 1.1)) if rng.random() < 0.25 else 0.0
        self.noise = float(rng.uniform(1, 9)) if rng.random() < 0.5 else 0.0
        self.quality = int(rng.integers(35, 92)) if rng.random() < 0.5 else 0
        gain, lift = (rng.uniform(0.75, 1.2), rng.uniform(-18, 18)) if rng.random() < 0.5 else (1.0, 0.0)
        self.curve = np.clip(np.arange(256) * gain + lift, 0, 255).astype(np.uint8).tolist() * 3

    def apply(self, image: Image.Image, grain: np.ndarray, rng: Generator) -> np.ndarray:
        image = image.point(self.curve)
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur * image.width / SIDE))
        pixels = np.asarray(image)
        if self.noise:
            y, x = rng.integers(0, 64, 2)
            part = grain[y : y + image.height, x : x + image.width].astype(np.int16)
            pixels = np.clip(pixels + (part * int(self.noise * 8) >> 8), 0, 255).astype(np.uint8)
        if self.quality:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality)
            pixels = np.asarray(Image.open(buffer))
        return pixels
