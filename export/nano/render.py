"""Drawing a scene: background, sprites in depth order, blur, noise and compression. Numpy and Pillow only."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import sprites
from .grammar import NOUN_NAMES
from .scene import SIDE, Actor, Scene

MARGIN = 64
"""Units of background beyond each edge of the picture, for the camera to pan into."""


class Painter:
    """Draws clips of one picture size. Holds tinted and down-scaled sprites."""

    def __init__(self, atlas: np.ndarray, size: int = SIDE) -> None:
        self.size, self.k, self.atlas = size, size / SIDE, atlas
        self.sprite = lru_cache(maxsize=4096)(self._sprite)
        rng = np.random.default_rng(0)
        self.grain = (rng.standard_normal((size + 64, size + 64, 3)) * 32).astype(np.int8)

    def _sprite(self, noun: str, colour: str | None, flip: bool, shrink: int) -> Image.Image:
        pixels = self.atlas[NOUN_NAMES.index(noun)]
        if colour is not None:
            pixels = sprites.tint(pixels, colour)
        image = Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if flip else pixels))
        return image.reduce(shrink) if shrink > 1 else image

    @staticmethod
    def _shrink(side: float) -> int:
        """By how much to reduce a sprite before it is sampled: bilinear sampling alone would skip pixels."""
        return 4 if side < 0.28 * sprites.SIDE else 2 if side < 0.55 * sprites.SIDE else 1

    def paint(self, scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frames uint8 (T,s,s,3); instance_map uint8 (T,s,s): 0 background, i+1 actor i; areas int (T,N) of the unhidden actors."""
        backdrop, look = self.backdrop(scene, rng), Look(rng)
        frames = np.empty((scene.frames, self.size, self.size, 3), np.uint8)
        instance_map = np.empty((scene.frames, self.size, self.size), np.uint8)
        areas = np.zeros((scene.frames, len(scene.actors)), np.int64)
        order = sorted(range(len(scene.actors)), key=lambda i: scene.actors[i].depth)
        for t in range(scene.frames):
            picture, owner = self._scroll(backdrop, scene.camera[t]), Image.new("L", (self.size, self.size))
            for i in order:
                areas[t, i] = self._stamp(picture, owner, scene.actors[i], t, i + 1, look.trail)
            frames[t] = look.finish(picture, self.grain, rng)
            instance_map[t] = np.asarray(owner)
        return frames, instance_map, areas

    def _stamp(self, picture: Image.Image, owner: Image.Image, actor: Actor, t: int, label: int, trail: bool) -> int:
        side = actor.size * actor.scale[t] * self.k
        sprite = self.sprite(actor.noun, actor.colour, actor.flip, self._shrink(side))
        zoom = sprite.width / side  # the sprite fills its square but for a thin rim
        reach = int(np.ceil(side * 0.72)) + 2
        cx, cy = actor.x[t] * self.k, actor.y[t] * self.k
        left, top = int(np.floor(cx)) - reach, int(np.floor(cy)) - reach
        if left >= self.size or top >= self.size or left + 2 * reach <= 0 or top + 2 * reach <= 0:
            return 0
        patch = _turn(sprite, 2 * reach, cx - left, cy - top, zoom, actor.angle[t])
        inside = patch.getchannel("A").point(_HALF)
        area = inside.histogram()[255]
        owner.paste(label, (left, top), inside)
        if trail and 0 < t < len(actor.x):
            patch = self._trail(patch, sprite, actor, t, cx - left, cy - top, zoom, reach)
        picture.paste(patch, (left, top), patch)
        return area

    def _trail(self, patch, sprite, actor: Actor, t: int, cx: float, cy: float, zoom: float, reach: int) -> Image.Image:
        """Motion blur: the mean of the sprite here and a little before and after, for what moves fast enough to show."""
        dx, dy = (actor.x[t] - actor.x[t - 1]) * self.k * 0.2, (actor.y[t] - actor.y[t - 1]) * self.k * 0.2
        if np.hypot(dx, dy) < 0.5 or np.hypot(dx, dy) > 6 * self.k:
            return patch
        a, b = (
            _turn(sprite, 2 * reach, cx + s * dx, cy + s * dy, zoom, actor.angle[t]).convert("RGBa") for s in (-1, 1)
        )
        # averaged with colours weighted by alpha, or the transparent parts would darken the rim
        return Image.blend(Image.blend(a, b, 0.5), patch.convert("RGBa"), 1 / 3).convert("RGBA")

    def _scroll(self, backdrop: Image.Image, shift: np.ndarray) -> Image.Image:
        offset = np.clip(MARGIN - shift, 0, 2 * MARGIN) * self.k
        grain = backdrop.width / ((SIDE + 2 * MARGIN) * self.k)
        if grain == 1 and not shift.any():
            left, top = offset.astype(int).tolist()
            return backdrop.crop((left, top, left + self.size, top + self.size))
        x, y = (offset * grain).tolist()
        return backdrop.transform((self.size, self.size), Image.AFFINE, (grain, 0, x, 0, grain, y), Image.BILINEAR)

    def backdrop(self, scene: Scene, rng: np.random.Generator) -> Image.Image:
        """A larger picture of smooth noise, stripes or a gradient, with clutter: crisp, or soft and then at half the size."""
        soft = rng.uniform(0.6, 1.6) if rng.random() < 0.6 else 0.0
        side = int((SIDE + 2 * MARGIN) * self.k) // (2 if soft else 1)
        base = rng.uniform(20, 235, 3)
        noise = np.zeros((48, 48, 3), np.float32)
        for cells in (3, 7, 17):
            coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
            coarse = 0.5 * coarse + 0.5 * coarse.mean(axis=-1, keepdims=True)
            planes = [
                Image.fromarray(np.ascontiguousarray(coarse[..., c])).resize((48, 48), Image.BICUBIC) for c in range(3)
            ]
            noise += np.stack([np.asarray(p) for p in planes], -1) * rng.uniform(4, 30)
        canvas = Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8)).resize((side, side), Image.BILINEAR)
        pen = ImageDraw.Draw(canvas)
        if rng.random() < 0.3:
            self._stripes(pen, side, base, rng)
        for _ in range(int(rng.integers(0, 26))):
            self._clutter(pen, side, base, rng)
        return canvas.filter(ImageFilter.GaussianBlur(soft * self.k)) if soft else canvas

    @staticmethod
    def _stripes(pen: ImageDraw.ImageDraw, side: int, base: np.ndarray, rng: np.random.Generator) -> None:
        step, slant, colour = int(rng.integers(side // 24, side // 7)), rng.uniform(-1, 1) * side, _near(base, rng, 28)
        for x in range(-side, 2 * side, step):
            pen.line((x, 0, x + slant, side), fill=colour, width=max(1, step // 3))

    @staticmethod
    def _clutter(pen: ImageDraw.ImageDraw, side: int, base: np.ndarray, rng: np.random.Generator) -> None:
        x, y = rng.uniform(0, side, 2)
        w, h = rng.uniform(0.015, 0.12, 2) * side
        colour = _near(base, rng, 70)
        shape = rng.integers(3)
        if shape == 0:
            pen.ellipse((x - w, y - h, x + w, y + h), fill=colour)
        elif shape == 1:
            pen.polygon([(x - w, y - h), (x + w, y - 0.4 * h), (x + 0.3 * w, y + h)], fill=colour)
        else:
            pen.rectangle((x - w, y - h, x + w, y + h), fill=colour)


class Look:
    """How a clip's camera sees: exposure, softness, grain, compression; one choice per clip."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.trail = bool(rng.random() < 0.35)
        self.soft = float(rng.uniform(0.4, 1.1)) if rng.random() < 0.25 else 0.0
        self.noise = float(rng.uniform(1, 9)) if rng.random() < 0.5 else 0.0
        self.quality = int(rng.integers(35, 92)) if rng.random() < 0.5 else None
        gain, lift = (rng.uniform(0.75, 1.2), rng.uniform(-18, 18)) if rng.random() < 0.5 else (1.0, 0.0)
        self.curve = None if gain == 1 else np.clip(np.arange(256) * gain + lift, 0, 255).astype(np.uint8).tolist() * 3

    def finish(self, picture: Image.Image, grain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.curve is not None:
            picture = picture.point(self.curve)
        if self.soft:
            picture = picture.filter(ImageFilter.GaussianBlur(self.soft * picture.width / SIDE))
        pixels = np.asarray(picture)
        if self.noise:
            y, x = rng.integers(0, 64, 2)
            part = grain[y : y + picture.height, x : x + picture.width].astype(np.int16)
            pixels = np.clip(pixels + (part * int(self.noise * 8) >> 8), 0, 255).astype(np.uint8)
        if self.quality is not None:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=self.quality)
            pixels = np.asarray(Image.open(buffer))
        return pixels


_HALF = [0] * 128 + [255] * 128


def _near(base: np.ndarray, rng: np.random.Generator, spread: float) -> tuple[int, ...]:
    return tuple(np.clip(base + rng.normal(0, spread, 3), 0, 255).astype(int).tolist())


def _turn(sprite: Image.Image, side: int, cx: float, cy: float, zoom: float, angle: float) -> Image.Image:
    """The sprite turned by `angle` degrees about its middle, which comes to lie at (cx, cy) of a square patch."""
    c, s = np.cos(np.radians(angle)) * zoom, np.sin(np.radians(angle)) * zoom
    middle = sprite.width / 2
    return sprite.transform(
        (side, side), Image.AFFINE, (c, s, middle - c * cx - s * cy, -s, c, middle + s * cx - c * cy), Image.BILINEAR
    )
