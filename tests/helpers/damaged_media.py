"""Damaged videos and folders of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from helpers import media


def make_files(folder: Path) -> dict[str, Path]:
    """Write damaged videos and folders of pictures; path by the name of the damage."""
    clip = media.clip(24, 96, 160)
    whole = media.write(folder / "whole.mp4", clip, gop=8, movflags="faststart")
    return {
        "truncated packet": media.truncate(whole, 2 / 3),
        "damaged packets": media.corrupt(whole, 0.5, whole.stat().st_size, step=97),
        "missing frames": media.drop_packets(whole),
        "camera": media.write(folder / "camera.ts", clip, gop=8),
        "damaged picture": _pictures(folder / "damaged", clip, damaged=4),
        "picture of another size": _pictures(folder / "sizes", clip, other=5),
    }


def _pictures(folder: Path, clip: np.ndarray, damaged: int | None = None, other: int | None = None) -> Path:
    folder.mkdir()
    for i in range(6):
        path = folder / f"{i}.png"
        Image.fromarray(clip[i] if i != other else np.rot90(clip[i])).save(path)
        if i == damaged:
            path.write_bytes(path.read_bytes()[:300])
    return folder
