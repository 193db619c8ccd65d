"""The parity clip: a seeded moving pattern with a seeded sentence, and how the runtime is made to run it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import create
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Manifest
from runtime.engine import Engine
from runtime.errors import InternalError
from runtime.media.synthetic_clip import Disc, synthetic_clip
from runtime.prompts import Text

CLICK = (0.45, 0.5)
"""Where networks without sentences are shown the object, as parts of width and height."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is compared of a `Result`."""

    frame_index: int
    masks: np.ndarray
    low_res_logits: np.ndarray
    score_logits: np.ndarray


SEEN = tuple(f.name for f in fields(Seen))


def clip_frames(window: int, height: int = 90, width: int = 160) -> list[np.ndarray]:
    """A moving pattern: `window` frames of smooth colour with a bright disc that crosses it, uint8 RGB (H,W,3)."""
    disc = Disc(lambda t: width * (0.2 + 0.07 * t), height * 0.5, height / 5, (230, 180, 60))
    return synthetic_clip(window, height, width, disc, (7, 11))


def clip_tokens(vocabulary: int, longest: int) -> list[int]:
    """`<s>` seven seeded tokens `</s>`, inside the vocabulary."""
    inner = np.random.default_rng(0).integers(3, vocabulary, min(7, longest - 2)).tolist() if vocabulary > 3 else []
    return [0, *inner, 2 % vocabulary]


def clip_results(engine: Engine) -> list[Any]:
    """The parity clip through the runtime, with logits; one picture where the network knows no clips, one click where
    it knows no sentences."""
    manifest = engine.bundle.manifest
    text, frames = manifest.text, clip_frames(clip_length(manifest))
    if text is None:
        return _clicked(engine, frames)
    tokens = clip_tokens(text["vocabulary"], text["max_tokens"])
    prompt = Text(tokens=tokens, verbs=[1] if text.get("motion") and len(tokens) > 2 else None)
    if not any("window" in settings for settings in manifest.networks.values()):
        return [engine.image(frame).refer([prompt], logits=True) for frame in frames]
    with engine.session([prompt], logits=True) as session:
        return list(session.stream(frames))


def clip_length(manifest: Manifest) -> int:
    """Frames of the parity clip: a window, one picture, or enough for SAM 2 to look back at what it tracked."""
    windows = [settings["window"] for settings in manifest.networks.values() if "window" in settings]
    return windows[0] if windows else 4 if any("memory" in settings for settings in manifest.networks.values()) else 1


def _clicked(engine: Engine, frames: list[np.ndarray]) -> list[Any]:
    with engine.video(frames, logits=True, fill_hole_area=0) as video:
        video.add_points(0, 1, [CLICK], [1], normalized=True)
        return list(video.propagate())


def clip_in_child(folder: Path, backend: str, threads: int | None) -> list[Seen]:
    """`clip_results` of the bundle in `folder`, in a fresh process: without torch, and its memory goes when it ends."""
    file = folder.with_name(".clip.npz")
    command = [
        sys.executable,
        "-m",
        "export.verify",
        str(folder.resolve()),
        "--backend",
        backend,
        "--save",
        str(file.resolve()),
        *(["--threads", str(threads)] if threads else []),
    ]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InternalError(f"the runtime fails on the parity clip: {lines[-1].removeprefix('error: ')}")
    with np.load(file) as saved:
        return [Seen(*arrays) for arrays in zip(*(saved[name] for name in SEEN), strict=True)]


def save_clip(folder: Path, backend: str, threads: int | None, file: str) -> None:
    """The child's part of `clip_in_child`: write what is compared to `file`."""
    engine = Engine(Bundle(folder, Manifest.load(folder)), create(backend, threads), max_objects=1)
    results = clip_results(engine)
    np.savez(file, **{name: np.stack([getattr(r, name) for r in results]) for name in SEEN})
