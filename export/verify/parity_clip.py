"""The parity clip: a seeded moving pattern with a seeded sentence, and how the runtime is made to run it."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends import create
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import Manifest
from runtime.engine import Engine
from runtime.errors import InternalError
from runtime.image import ImagePredictor
from runtime.media.synthetic_clip import Disc, synthetic_clip
from runtime.models.base import Capability
from runtime.prompts import Concept, Text
from runtime.prompts.synthetic import synthetic_text
from runtime.results import Result

TOP_QUERIES = 8
"""Queries of SAM 3 that are compared: the most probable ones, kept or not."""

CLICK = (0.45, 0.5)
"""Position of the click for networks without sentences, as fractions of width and height."""


@dataclass(frozen=True, slots=True)
class ClipOutput:
    """The compared fields of a `Result`; `score` is the logit, or the score itself where a network has no logit."""

    frame_index: int
    masks: np.ndarray
    low_res_logits: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, result: Result) -> ClipOutput:
        """Take the compared fields of a result that carries logits."""
        assert result.low_res_logits is not None
        score = result.scores if result.score_logits is None else result.score_logits
        return cls(result.frame_index, result.masks, result.low_res_logits, score)


CLIP_FIELDS = tuple(f.name for f in fields(ClipOutput))


def clip_frames(window: int, height: int = 90, width: int = 160) -> list[np.ndarray]:
    """Return a moving pattern: `window` frames of smooth color that a bright disc crosses, uint8 RGB (H,W,3)."""
    disc = Disc(lambda t: width * (0.2 + 0.07 * t), height * 0.5, height / 5, (230, 180, 60))
    return synthetic_clip(window, height, width, disc, (7, 11))


def clip_results(engine: Engine) -> list[ClipOutput]:
    """Run the parity clip: one sentence, or one click where the network takes no sentences."""
    return [ClipOutput.of(result) for result in _run_clip(engine)]


def _run_clip(engine: Engine) -> list[Result]:
    manifest, capabilities = engine.bundle.manifest, engine.capabilities
    text, frames = manifest.text, clip_frames(clip_length(manifest))
    if text is None:
        return _clicked(engine, frames)
    prompt = synthetic_text(text)
    if Capability.CONCEPT_IMAGE in capabilities:
        tracked = _clicked(engine, frames) if Capability.PROMPT_VIDEO in capabilities else []
        return [_top_queries(engine.image(frames[0]), prompt), *tracked]
    if Capability.TEXT_VIDEO not in capabilities:
        return [engine.image(frame).refer([prompt], logits=True) for frame in frames]
    with engine.session([prompt], logits=True) as session:
        return list(session.stream(frames))


def _top_queries(image: ImagePredictor, words: Text) -> Result:
    """Return the most probable queries of a concept, whether they would be kept or not."""
    (found,) = image.detect([Concept.of(words)], threshold=0.0, logits=True)
    top = np.sort(np.argsort(-found.scores, kind="stable")[:TOP_QUERIES])
    assert found.score_logits is not None and found.low_res_logits is not None
    return replace(
        found,
        masks=found.masks[top],
        scores=found.scores[top],
        score_logits=found.score_logits[top],
        low_res_logits=found.low_res_logits[top],
    )


def clip_length(manifest: Manifest) -> int:
    """Return the length of the clip: a window, 4 frames for a memory without windows, 1 without a memory."""
    lengths = [settings.get("window", 4 if "memory" in settings else 1) for settings in manifest.networks.values()]
    return lengths[0]


def _clicked(engine: Engine, frames: list[np.ndarray]) -> list[Result]:
    with engine.video(frames, logits=True, fill_hole_area=0) as video:
        video.add_points(0, 1, [CLICK], [1], normalized=True)
        return list(video.propagate())


def clip_in_child(folder: Path, backend: str, threads: int | None) -> list[ClipOutput]:
    """Run `clip_results` of the bundle in `folder` in a fresh process, without torch; its memory is freed with it."""
    return timed_clip_in_child(folder, backend, threads, 1)[0]


def timed_clip_in_child(
    folder: Path, backend: str, threads: int | None, repeats: int = 2
) -> tuple[list[ClipOutput], float]:
    """Run the clip `repeats` times in a fresh process. Returns the results and the seconds of the fastest run."""
    file = folder.with_name(".clip.npz")
    command = [sys.executable, "-m", "export.verify", str(folder.resolve()), "--save", str(file.resolve())]
    command += ["--repeats", str(repeats), "--backend", backend, *(["--threads", str(threads)] if threads else [])]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[2], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InternalError(f"the runtime fails on the parity clip: {lines[-1].removeprefix('error: ')}")
    with np.load(file) as saved:
        count = len(saved.files) // len(CLIP_FIELDS)
        results = [ClipOutput(*(saved[f"{name} {i}"] for name in CLIP_FIELDS)) for i in range(count)]
        return results, float(saved["seconds"])


def save_clip(folder: Path, backend: str, threads: int | None, file: str, repeats: int = 1) -> None:
    """Run the clip and write the compared fields to `file`: the child's part of `timed_clip_in_child`."""
    with Engine(Bundle(folder, Manifest.load(folder)), create(backend, threads), max_objects=1) as engine:
        seconds = float("inf")
        for _ in range(repeats):
            started = time.perf_counter()
            results = clip_results(engine)
            seconds = min(seconds, time.perf_counter() - started)
    arrays: dict[str, Any] = {f"{name} {i}": getattr(r, name) for i, r in enumerate(results) for name in CLIP_FIELDS}
    np.savez(file, seconds=seconds, **arrays)
