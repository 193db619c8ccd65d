"""Sprite atlas: every noun as a 128 px sprite, drawn once from Debian's Noto Color Emoji.

    apt-get install fonts-noto-color-emoji
    python -m export.nano.sprites

writes `build/nano/sprites.png` (not committed). The font is needed for this step only. `placeholder()` returns plain
shapes that replace the atlas in tests.
"""

from __future__ import annotations

import argparse
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .grammar import COLOURS, GLYPHS, NOUNS

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
ATLAS = Path(__file__).resolve().parents[2] / "build" / "nano" / "sprites.png"
SIDE = 128
COLUMNS = 8


def draw(font: Path = FONT) -> np.ndarray:
    """Draw all sprites, uint8 (N,128,128,4): cropped to their alpha, the longer side 124 px, centred."""
    if not font.is_file():
        raise SystemExit(f"{font}: font not found; run apt-get install fonts-noto-color-emoji, or pass --font")
    face = ImageFont.truetype(str(font), 109)  # the only bitmap size in the font
    sprites = np.zeros((len(NOUNS), SIDE, SIDE, 4), np.uint8)
    for i, noun in enumerate(NOUNS):
        canvas = Image.new("RGBA", (170, 170))
        ImageDraw.Draw(canvas).text((8, 8), GLYPHS[noun], font=face, embedded_color=True)
        sprites[i] = _fit(canvas)
    return sprites


def _fit(canvas: Image.Image) -> np.ndarray:
    """Crop a glyph to its alpha and centre it in a sprite."""
    box = canvas.getchannel("A").point(lambda a: 255 * (a > 40)).getbbox()
    if box is None:
        raise SystemExit("the font has no glyph for one of the nouns; use NotoColorEmoji.ttf 2.034 or later")
    glyph = canvas.crop(box)
    scale = (SIDE - 4) / max(glyph.size)
    glyph = glyph.resize((max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))), Image.BICUBIC)
    out = Image.new("RGBA", (SIDE, SIDE))
    out.paste(glyph, ((SIDE - glyph.width) // 2, (SIDE - glyph.height) // 2))
    return _extend_colours(np.asarray(out))


def _extend_colours(sprite: np.ndarray) -> np.ndarray:
    """Extend colours into the transparent part, so that bilinear sampling makes no dark fringe."""
    alpha = sprite[..., 3:].astype(np.float32) / 255
    premultiplied = Image.fromarray((sprite[..., :3] * alpha).astype(np.uint8)).filter(ImageFilter.BoxBlur(6))
    weight = np.asarray(Image.fromarray(sprite[..., 3]).filter(ImageFilter.BoxBlur(6)), np.float32)[..., None] / 255
    spread = np.asarray(premultiplied, np.float32) / np.maximum(weight, 1 / 255)
    rgb = np.where(alpha > 0.5, sprite[..., :3], np.clip(spread, 0, 255))
    return np.concatenate([rgb.astype(np.uint8), sprite[..., 3:]], axis=-1)


def placeholder() -> np.ndarray:
    """Draw placeholders of the same array shape: a polygon of its own form and colour per noun."""
    sprites = []
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
        sprites.append(_fit(canvas))
    return np.stack(sprites)


def save(sprites: np.ndarray, path: Path = ATLAS) -> None:
    rows = -(-len(sprites) // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, SIDE, SIDE, 4), np.uint8)
    sheet[: len(sprites)] = sprites
    sheet = sheet.reshape(rows, COLUMNS, SIDE, SIDE, 4).transpose(0, 2, 1, 3, 4).reshape(rows * SIDE, COLUMNS * SIDE, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)


@lru_cache(maxsize=2)
def load(path: Path | None = None) -> np.ndarray:
    """Read the sprites, uint8 (N,128,128,4). `path`: the atlas, default `ATLAS`. Raises FileNotFoundError."""
    path = ATLAS if path is None else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no sprite atlas; run apt-get install fonts-noto-color-emoji and python -m export.nano.sprites"
        )
    sheet = np.asarray(Image.open(path).convert("RGBA"))
    rows = sheet.shape[0] // SIDE
    sprites = sheet.reshape(rows, SIDE, COLUMNS, SIDE, 4).transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 4)
    if len(sprites) < len(NOUNS):
        raise FileNotFoundError(f"{path}: atlas of another vocabulary; run python -m export.nano.sprites again")
    return sprites[: len(NOUNS)]


def tint(sprite: np.ndarray, colour: str) -> np.ndarray:
    """Recolour a sprite (H,W,4) in shades of one colour, keeping its lightness."""
    light = sprite[..., :3].astype(np.float32) @ np.array([0.3, 0.59, 0.11], np.float32) / 255
    inside = sprite[..., 3] > 128
    low, high = np.quantile(light[inside], [0.05, 0.95])
    light = np.clip((light - low) / max(high - low, 0.1), 0, 1)[..., None]
    base = np.array(COLOURS[colour], np.float32)
    # limits that keep the hue clear in the darkest and lightest parts
    shade = np.where(light < 0.5, base * (0.45 + 1.1 * light), base + (255 - base) * (light - 0.5) * 0.7)
    return np.concatenate([np.clip(shade, 0, 255).astype(np.uint8), sprite[..., 3:]], axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.nano.sprites", description="draw the sprite atlas")
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ATLAS)
    args = parser.parse_args()
    sprites = draw(args.font)
    save(sprites, args.out)
    print(f"{args.out}: {len(sprites)} sprites, crc32 {zlib.crc32(sprites.tobytes()):08x}")


if __name__ == "__main__":
    main()
