"""Sprite atlas: every noun as a 128 px sprite, drawn once from Debian's Noto Color Emoji.

    apt-get install fonts-noto-color-emoji
    python -m export.nano.sprites

writes `build/nano/sprites.png` (not committed). The font is needed for this step only.
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


def draw(font: Path) -> np.ndarray:
    """Draw all sprites, uint8 (N,128,128,4). Raises SystemExit."""
    if not font.is_file():
        raise SystemExit(f"{font}: font not found; run apt-get install fonts-noto-color-emoji, or pass --font")
    face = ImageFont.truetype(str(font), 109)  # the only bitmap size in the font
    sprites = []
    for noun in NOUNS:
        canvas = Image.new("RGBA", (170, 170))
        ImageDraw.Draw(canvas).text((8, 8), GLYPHS[noun], font=face, embedded_color=True)
        sprites.append(fit(canvas))
    return np.stack(sprites)


def fit(canvas: Image.Image) -> np.ndarray:
    """Crop a glyph to its alpha and centre it in a sprite (128,128,4), its longer side 124 px. Raises SystemExit."""
    box = canvas.getchannel("A").point(lambda a: 255 * (a > 40)).getbbox()
    if box is None:
        raise SystemExit("the font has no glyph for one of the nouns; use NotoColorEmoji.ttf 2.034 or later")
    glyph = canvas.crop(box)
    scale = (SIDE - 4) / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    out = Image.new("RGBA", (SIDE, SIDE))
    out.paste(glyph.resize((width, height), Image.Resampling.BICUBIC), ((SIDE - width) // 2, (SIDE - height) // 2))
    return _extend_colours(np.asarray(out))


def _extend_colours(sprite: np.ndarray) -> np.ndarray:
    """Extend colours into the transparent part, so that bilinear sampling makes no dark fringe."""
    alpha = sprite[..., 3:].astype(np.float32) / 255
    premultiplied = Image.fromarray((sprite[..., :3] * alpha).astype(np.uint8)).filter(ImageFilter.BoxBlur(6))
    weight = np.asarray(Image.fromarray(sprite[..., 3]).filter(ImageFilter.BoxBlur(6)), np.float32)[..., None] / 255
    spread = np.asarray(premultiplied, np.float32) / np.maximum(weight, 1 / 255)
    rgb = np.where(alpha > 0.5, sprite[..., :3], np.clip(spread, 0, 255))
    return np.concatenate([rgb.astype(np.uint8), sprite[..., 3:]], axis=-1)


@lru_cache(maxsize=1)
def load() -> np.ndarray:
    """Read the sprites, uint8 (N,128,128,4). Raises FileNotFoundError."""
    sheet = np.asarray(Image.open(ATLAS).convert("RGBA")) if ATLAS.is_file() else np.empty(0, np.uint8)
    if sheet.shape != (len(NOUNS) * SIDE, SIDE, 4):
        problem = "atlas of another version" if len(sheet) else "no sprite atlas"
        command = "apt-get install fonts-noto-color-emoji and python -m export.nano.sprites"
        raise FileNotFoundError(f"{ATLAS}: {problem}; run {command}")
    return sheet.reshape(-1, SIDE, SIDE, 4)


def tint(sprite: np.ndarray, colour: str) -> np.ndarray:
    """Recolour a sprite (H,W,4) in shades of one colour, keeping its lightness."""
    lightness = sprite[..., :3].astype(np.float32) @ np.array([0.3, 0.59, 0.11], np.float32) / 255
    low, high = np.quantile(lightness[sprite[..., 3] > 128], [0.05, 0.95])
    light = np.clip((lightness - low) / max(high - low, 0.1), 0, 1)[..., None]
    base = np.array(COLOURS[colour], np.float32)
    # limits that keep the hue clear in the darkest and lightest parts
    shade = np.where(light < 0.5, base * (0.45 + 1.1 * light), base + (255 - base) * (light - 0.5) * 0.7)
    return np.concatenate([np.clip(shade, 0, 255).astype(np.uint8), sprite[..., 3:]], axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m export.nano.sprites", description="draw the sprite atlas")
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf (default: %(default)s)")
    sprites = draw(parser.parse_args().font)
    ATLAS.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sprites.reshape(-1, SIDE, 4)).save(ATLAS)
    print(f"{ATLAS}: {len(sprites)} sprites, crc32 {zlib.crc32(sprites.tobytes()):08x}")


if __name__ == "__main__":
    main()
