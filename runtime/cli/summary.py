"""Terminal output of the command: progress bar, summary of a run, list of bundles."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..bundle.bundle import find
from ..bundle.manifest import MANIFEST, Manifest
from ..engine import Engine
from ..errors import BundleError
from ..media.video_reader import VideoReader
from ..results import Result

MAX_ROWS = 40
"""Objects that the summary prints; results.json has all."""


class ProgressBar:
    """A bar with frames per second on a terminal; prints nothing elsewhere. `total` None: unknown."""

    def __init__(self, name: str, total: int | None) -> None:
        from tqdm import tqdm

        counts = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} frames, {rate_fmt}, {remaining} left"
        # tqdm itself would hide the bar on a terminal without a size (docker run -t)
        columns, rows = shutil.get_terminal_size()
        self._bar = tqdm(
            total=total,
            unit=" frames",
            desc=Path(name).name[-30:] or name,
            leave=False,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
            ncols=columns,
            nrows=rows,
            smoothing=0.1,
            bar_format="{desc}: " + (counts if total else "{n_fmt} frames, {rate_fmt}"),
        )

    def step(self) -> None:
        """Count one frame."""
        self._bar.update()

    def __enter__(self) -> ProgressBar:
        self._bar.refresh()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


@dataclass(slots=True)
class ObjectStats:
    """Totals of one object: frames since it appeared, frames with a mask, sum of its scores."""

    prompt_id: int
    followed: int = 0
    visible: int = 0
    score_sum: float = 0.0


@dataclass(slots=True)
class RunStats:
    """Totals of one run. `objects` by id, in the order in which they appeared; seconds of reading and writing."""

    objects: dict[int, ObjectStats]
    frames: int = 0
    seconds: float = 0.0
    reading: float = 0.0
    writing: float = 0.0

    def count(self, result: Result) -> None:
        """Add one frame."""
        self.frames += 1
        rows = zip(result.object_ids, result.prompt_ids, result.masks, result.scores, strict=True)
        for obj, prompt, mask, score in rows:
            stats = self.objects.setdefault(obj, ObjectStats(prompt))
            stats.followed += 1
            stats.visible += bool(mask.any())
            stats.score_sum += float(score)


def summarize_run(
    stats: RunStats, labels: Mapping[int, str], stage_timings: Mapping[str, tuple[int, float]], complete: bool
) -> dict[str, Any]:
    """Describe a finished or interrupted run, as in results.json. Seconds of a stage are sums over its calls."""
    objects = [
        {
            "id": obj,
            "prompt": object_label(labels, entry.prompt_id, obj),
            "followed": entry.followed,
            "visible": entry.visible,
            "score": round(entry.score_sum / max(entry.followed, 1), 4),
        }
        for obj, entry in stats.objects.items()
    ]
    stages = {n: {"calls": calls, "seconds": round(s, 4)} for n, (calls, s) in stage_timings.items() if calls}
    timings = {"reading": round(stats.reading, 4), "writing": round(stats.writing, 4), "stages": stages}
    return {
        "complete": complete,
        "done": stats.frames,
        "seconds": round(stats.seconds, 3),
        "fps": round(stats.frames / stats.seconds, 3) if stats.seconds else 0.0,
        "objects": objects,
        "timings": timings,
    }


def describe_engine(engine: Engine) -> dict[str, str]:
    """Describe the bundle and backend of a run, as in the header of results.json."""
    return {"bundle": engine.bundle.name, **_network(engine.bundle.manifest), "backend": engine.backend.name}


def describe_run(engine: Engine, video: VideoReader) -> dict[str, Any]:
    """Describe source and engine of a run: the header of results.json."""
    size = {"width": video.size[1], "height": video.size[0]}
    about = {"name": video.name, **size, "fps": float(f"{video.fps:.6g}"), "stride": video.stride}
    return {"video": about, "model": describe_engine(engine)}


def _network(manifest: Manifest) -> dict[str, str]:
    return {"network": manifest.network_names, "variant": manifest.variant, "precision": manifest.precision}


def object_label(labels: Mapping[int, str], prompt_id: int, object_id: int) -> str:
    """Return the label of an object: that of its prompt, or its number."""
    return labels.get(prompt_id, f"object {object_id}")


def print_summary(
    summary: Mapping[str, Any], as_json: bool, colours: Mapping[int, np.ndarray], file: TextIO | None = None
) -> None:
    """Print a summary as JSON, one line on standard output, or as text on `file`, standard output by default.

    `colours`: of each object, in the overlay.
    """
    if as_json:
        print(json.dumps(summary, ensure_ascii=False), flush=True)
    else:
        print("\n".join(_summary_lines(summary, colours)), file=file, flush=True)


def _summary_lines(summary: Mapping[str, Any], colours: Mapping[int, np.ndarray]) -> list[str]:
    objects = summary["objects"]
    lines = _object_table(objects, colours) if objects else ["no object"]
    lines.append(f"... and {len(objects) - MAX_ROWS} more" if len(objects) > MAX_ROWS else "")
    dropped = f" ({summary['dropped']} dropped: slower than the camera)" if summary.get("dropped") else ""
    frames = f"{summary['done']} frame{'s' * (summary['done'] != 1)}"
    lines.append(f"{frames} in {summary['seconds']:.1f} s, {summary['fps']:.2f} frames per second{dropped}")
    if summary.get("files"):
        lines.append("written: " + "  ".join(summary["files"]))
    return lines + [f"note: {note}" for note in summary["notes"]]


def _object_table(objects: Sequence[Mapping[str, Any]], colours: Mapping[int, np.ndarray]) -> list[str]:
    measures = [key for key in ("J", "F", "J&F") if objects and key in objects[0]]
    shown = objects[:MAX_ROWS]
    rows = [["", "prompt", "visible", "score", *measures]]
    for entry in shown:
        counts = f"{entry['visible']}/{entry['followed']}"
        values = (f"{entry[key]:.3f}" for key in measures)
        rows.append([f"{entry['id']}", _shorten(entry["prompt"]), counts, f"{entry['score']:.2f}", *values])
    if measures and len(objects) > 1:
        means = (sum(entry[key] for entry in objects) / len(objects) for key in measures)
        rows.append(["", "mean", "", "", *(f"{mean:.3f}" for mean in means)])
    lines = table(rows)
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        for number, entry in enumerate(shown, 1):
            r, g, b = colours[entry["id"]]
            lines[number] = f"\033[38;2;{r};{g};{b}m\N{BLACK SQUARE}\033[0m " + lines[number][2:]
    return lines


def list_bundles(folder: Path, as_json: bool) -> int:
    """Print the bundles in `folder`, and an error for each damaged one. Returns the exit code."""
    bundles, errors = describe_bundles(folder)
    if as_json:
        print(json.dumps({"bundles": bundles, "broken": errors}, ensure_ascii=False))
    else:
        rows = [["name", "network", "variant", "precision", "image", "MB", "text", "demo"]]
        for b in bundles:
            sizes = [f"{b['image_size']} px", f"{b['megabytes']:.0f}"]
            parts = ["yes" if b["tokenizer"] else "token ids only", "yes" if b["demo"] else "no"]
            rows.append([b["name"], b["network"], b["variant"], b["precision"], *sizes, *parts])
        print("\n".join(table(rows) if bundles else [f"no bundle in {folder}"]))
    for message in errors:
        print("error: " + message, file=sys.stderr)
    return 2 if errors or not bundles else 0


def describe_bundles(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the properties of the bundles in `folder` and the errors of those that cannot be read."""
    if (folder / MANIFEST).is_file():
        folders = [folder]
    elif folder.is_dir():
        folders = sorted(sub for sub in folder.iterdir() if (sub / MANIFEST).is_file())
    else:
        raise BundleError(f"{folder}: no such folder; export a bundle into it with `python -m export`")
    bundles, errors = [], []
    for sub in folders:
        try:
            (bundle,) = find(sub)
        except BundleError as error:
            errors.append(str(error))
            continue
        m = bundle.manifest
        size = sum(path.stat().st_size for name in m.files if (path := sub / name).is_file()) / 1e6
        bundles.append(
            {
                "name": bundle.name,
                **_network(m),
                "image_size": m.image_size,
                "megabytes": round(size, 1),
                "tokenizer": m.tokenizer is not None,
                "demo": m.demo is not None,
                "folder": str(bundle.folder),
            }
        )
    return bundles, errors


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
