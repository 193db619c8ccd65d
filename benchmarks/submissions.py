"""Masks of a data set without ground truth, in the layout that its evaluation server takes.

    python -m benchmarks.accuracy --engine engines/samwise-mevis --data MeViS/valid --layout mevis --submit mevis.zip

| layout | in the archive | pixels |
|---|---|---|
| `mevis` | `<video>/<expression>/<frame>.png` | 255 on the object |
| `ytvos` | `Annotations/<video>/<expression>/<frame>.png` | 255 on the object |
| `davis` | `anno_<annotator>/<video>/<frame>.png` | number of the object, DAVIS' palette |

Videos that are done wait in a folder beside the archive, so that a run that was stopped goes on with the next one.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import runtime
from runtime.cli.overlay import palette
from runtime.imaging.preprocess import resized_size
from runtime.imaging.upsample import MaskUpsampler
from runtime.results import Result

from .datasets import frame_files, need, pictures, read_images

DAVIS_ANNOTATORS = 4
"""Expressions of one object follow each other: two annotators wrote one for the first frame and one for all."""

PREFIXES = {"mevis": "", "ytvos": "Annotations/"}
SETTINGS = "settings.json"


@dataclass(frozen=True, slots=True)
class Video:
    """Frames of a video in order, and its expressions by their id."""

    name: str
    frames: list[Path]
    expressions: Mapping[str, str]


def read_videos(root: Path, layout: str) -> list[Video]:
    """Return the videos of `root`, the folder of a split (MeViS/valid, ref-youtube-vos/valid, ref-davis/valid).

    The expressions are in `meta_expressions.json` there, or in `../meta_expressions/<split>/`. Of Ref-YouTube-VOS'
    `valid`, videos that are also in its `test` are left out, as its server does. Raises FileNotFoundError.
    """
    own, central = root / "meta_expressions.json", root.parent / "meta_expressions"
    meta = _videos(own if own.is_file() else need(central / root.name / "meta_expressions.json"))
    test = central / "test" / "meta_expressions.json"
    if layout == "ytvos" and root.name == "valid" and test.is_file():
        meta = {name: entry for name, entry in meta.items() if name not in _videos(test)}
    found = []
    for name, entry in meta.items():
        files = frame_files(pictures(root, name), entry.get("frames"))
        found.append(Video(name, files, {key: said["exp"] for key, said in entry["expressions"].items()}))
    return found


def _videos(meta: Path) -> dict[str, Any]:
    videos: dict[str, Any] = json.loads(meta.read_text(encoding="utf-8"))["videos"]
    return videos


def names(video: Video, layout: str) -> Iterator[str]:
    """Yield the names of the files of a video in the archive."""
    if layout == "davis":
        folders = [f"anno_{annotator}/{video.name}" for annotator in range(DAVIS_ANNOTATORS)]
        stems = [f"{t:05d}" for t in range(len(video.frames))]
    else:
        folders = [f"{PREFIXES[layout]}{video.name}/{key}" for key in video.expressions]
        stems = [path.stem for path in video.frames]
    yield from (f"{folder}/{stem}.png" for folder in folders for stem in stems)


def submit(
    engine: runtime.Engine, root: Path, layout: str, out: Path, count: int | None = None, reference_quirks: bool = False
) -> int:
    """Segment every expression and write the archive `out`. Returns the number of videos.

    count             only so many videos, to try it
    reference_quirks  see `runtime.TextOptions`
    Raises FileNotFoundError for a data set that lacks files, UserError for an archive or parts of another run.
    """
    if out.exists():
        raise runtime.UserError(f"{out}: exists; remove it, or give another name")
    videos = read_videos(root, layout)[:count]
    parts = out.with_name(out.name + ".parts")
    settings = {"layout": layout, "data": str(root.resolve()), "reference_quirks": reference_quirks}
    _check_settings(parts, {"bundle": engine.bundle.manifest.files, **settings})
    done = {path.name for path in parts.iterdir() if path.is_dir()}
    for video in tqdm(videos, unit=" videos", disable=None):
        if video.name not in done:
            _segment(engine, video, layout, parts, reference_quirks)
    _pack([name for video in videos for name in names(video, layout)], videos, layout, parts, out)
    shutil.rmtree(parts)
    return len(videos)


def _check_settings(parts: Path, settings: Mapping[str, Any]) -> None:
    parts.mkdir(parents=True, exist_ok=True)
    file, text = parts / SETTINGS, json.dumps(settings, sort_keys=True)
    if file.is_file() and file.read_text() != text:
        raise runtime.UserError(
            f"{parts}: masks of another bundle or data set; remove the folder, or give another name"
        )
    file.write_text(text)


def _segment(engine: runtime.Engine, video: Video, layout: str, parts: Path, reference_quirks: bool) -> None:
    """Write the masks of a video into `parts/<video>`, which appears when all are there."""
    work = parts / f".{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    prompts = [runtime.Text(text) for text in video.expressions.values()]
    files = list(names(video, layout))
    per_frame = [files[t :: len(video.frames)] for t in range(len(video.frames))]
    with engine.session(prompts, logits=layout == "davis", reference_quirks=reference_quirks) as session:
        for result, targets in zip(session.stream(read_images(video.frames)), per_frame, strict=True):
            images = _numbered(engine, result) if layout == "davis" else _binary(result)
            for image, target in zip(images, targets, strict=True):
                path = work / target
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    work.rename(parts / video.name)


def _binary(result: Result) -> Iterator[Image.Image]:
    for mask in result.masks:
        yield Image.fromarray(mask.astype(np.uint8) * 255)


def _numbered(engine: runtime.Engine, result: Result) -> Iterator[Image.Image]:
    """Yield one image per annotator, in which a pixel belongs to the object with the largest logit above 0."""
    assert result.low_res_logits is not None
    manifest, size = engine.bundle.manifest, result.masks.shape[1:]
    resized = resized_size(*size, **manifest.networks["samwise"]["resize"])
    upsampler = MaskUpsampler(result.low_res_logits.shape[-1], manifest.image_size, resized, size)
    for annotator in range(DAVIS_ANNOTATORS):
        logits = upsampler.logits(result.low_res_logits[annotator::DAVIS_ANNOTATORS])
        numbers = np.concatenate([np.zeros((1, *size), np.float32), np.maximum(logits, 0)]).argmax(0)
        image = Image.fromarray(numbers.astype(np.uint8))
        image.putpalette(palette().tobytes())
        yield image


def _pack(expected: Iterable[str], videos: Iterable[Video], layout: str, parts: Path, out: Path) -> None:
    """Write the archive in one step. Raises FileNotFoundError for a mask that is missing."""
    folder = {name: parts / video.name for video in videos for name in names(video, layout)}
    temporary = parts / out.name
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed
        for name in expected:
            archive.write(need(folder[name] / name), name)
    temporary.replace(out)
