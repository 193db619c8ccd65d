"""What the command shows: a progress bar, a summary, a list of bundles."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle.bundle import find
from ..bundle.manifest import MANIFEST
from ..errors import BundleError
from .overlay import palette

if TYPE_CHECKING:
    from ..bundle.demo import Quality
    from ..media.video_reader import VideoReader


MAX_ROWS = 40
"""Objects that the summary lists for a person; results.json has all."""


class Progress:
    """A bar with frames per second on a terminal; nothing anywhere else."""

    def __init__(self, video: VideoReader) -> None:
        from tqdm import tqdm

        known = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} frames, {rate_fmt}, {remaining} left"
        # a terminal without a size (docker run -t) would hide the bar if tqdm asked for it itself
        columns, rows = shutil.get_terminal_size()
        self._bar = tqdm(
            total=video.count,
            unit=" frames",
            desc=Path(video.name).name[-30:] or video.name,
            leave=False,
            disable=not sys.stderr.isatty(),
            file=sys.stderr,
            ncols=columns,
            nrows=rows,
            smoothing=0.1,
            bar_format="{desc}: " + (known if video.count else "{n_fmt} frames, {rate_fmt}"),
        )

    def step(self) -> None:
        """One frame is done."""
        self._bar.update()

    def __enter__(self) -> Progress:
        self._bar.refresh()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()


class Summary(dict):
    """What a run did, as it stands at the head of results.json; `show` tells it to a person or to a program."""

    def show(self, as_json: bool) -> None:
        """Print it on the standard output, as JSON on one line or as a few lines for a person."""
        print(json.dumps(self, ensure_ascii=False) if as_json else "\n".join(self._lines()), flush=True)

    def _lines(self) -> list[str]:
        objects = self["objects"]
        measures = [key for key in ("J", "F", "J&F") if objects and key in objects[0]]
        rows = [["", "what", "visible", "score", *measures]]
        shown = objects[:MAX_ROWS]
        rows += [
            [
                f"{o['id']}",
                _short(o["prompt"]),
                f"{o['visible']}/{o['followed']}",
                f"{o['score']:.2f}",
                *(f"{o[key]:.3f}" for key in measures),
            ]
            for o in shown
        ]
        if measures and len(objects) > 1:
            means = [sum(o[key] for o in objects) / len(objects) for key in measures]
            rows.append(["", "mean", "", "", *(f"{mean:.3f}" for mean in means)])
        lines = _table(rows)
        if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            colours = palette().tolist()
            for number, entry in enumerate(shown, 1):
                r, g, b = (min(255, 2 * c) for c in colours[entry["id"] % 256])
                lines[number] = f"\033[38;2;{r};{g};{b}m\N{BLACK SQUARE}\033[0m " + lines[number][2:]
        lines.append(f"... and {len(objects) - MAX_ROWS} more" if len(objects) > MAX_ROWS else "")
        frames = f"{self['done']} frame{'s' * (self['done'] != 1)}"
        lines.append(
            f"{frames} in {self['seconds']:.1f} s, {self['fps']:.2f} frames per second"
            + (f" ({self['dropped']} dropped: slower than the camera)" if self.get("dropped") else "")
        )
        if self.get("files"):
            lines.append("written: " + "  ".join(self["files"]))
        return lines + [f"note: {note}" for note in self["notes"]]


def summary(job: Any, engine: Any, labels: dict[int, str], complete: bool, quality: Quality | None) -> Summary:
    """Facts about a finished or interrupted run. Seconds per stage are sums over all calls."""
    out = Summary(
        complete=complete,
        done=job.done,
        seconds=round(job.seconds, 3),
        fps=round(job.done / job.seconds, 3) if job.seconds else 0.0,
    )
    out["objects"] = []
    for identity in [*labels, *(i for i in job.sums if i not in labels)]:
        label = labels.get(identity, f"object {identity}")
        followed, visible, score = job.sums.get(identity, (0, 0, 0.0))
        out["objects"].append(
            {
                "id": identity,
                "prompt": label,
                "followed": int(followed),
                "visible": int(visible),
                "score": round(float(score) / max(followed, 1), 4),
            }
        )
    for entry, row in zip(out["objects"], quality.table() if quality is not None else []):
        entry.update({key: round(value, 4) for key, value in row.items()})
    stages = {
        name: {"calls": calls, "seconds": round(seconds, 4)}
        for name, (calls, seconds) in engine.timings.items()
        if calls
    }
    out["timings"] = {"reading": round(job.reading, 4), "writing": round(job.writing, 4), "stages": stages}
    out["notes"] = list(job.video.notes)
    if job.video.dropped:
        out["dropped"] = job.video.dropped
    return out


def listing(folder: Path, as_json: bool) -> int:
    """Print the bundles in `folder`. A damaged one is listed with what is wrong with it. Returns the exit code."""
    bundles, broken = _bundles(folder)
    if as_json:
        print(json.dumps({"bundles": bundles, "broken": broken}, ensure_ascii=False))
    else:
        rows = [["name", "network", "variant", "precision", "picture", "MB", "text", "demo"]]
        rows += [
            [
                b["name"],
                b["network"],
                b["variant"],
                b["precision"],
                f"{b['image_size']} px",
                f"{b['megabytes']:.0f}",
                "yes" if b["tokenizer"] else "token ids only",
                "yes" if b["demo"] else "no",
            ]
            for b in bundles
        ]
        print("\n".join(_table(rows) if bundles else [f"no bundle in {folder}"]))
    for message in broken:
        print("error: " + message, file=sys.stderr)
    return 2 if broken or not bundles else 0


def _bundles(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    if (folder / MANIFEST).is_file():
        folders = [folder]
    elif folder.is_dir():
        folders = sorted(sub for sub in folder.iterdir() if (sub / MANIFEST).is_file())
    else:
        raise BundleError(f"{folder}: no such folder; export a bundle into it with `python -m export`")
    bundles, broken = [], []
    for sub in folders:
        try:
            (bundle,) = find(sub)
        except BundleError as error:
            broken.append(str(error))
            continue
        m = bundle.manifest
        size = sum(path.stat().st_size for name in m.files if (path := sub / name).is_file()) / 1e6
        bundles.append(
            {
                "name": bundle.name,
                "network": m.model,
                "variant": m.variant,
                "precision": m.precision,
                "image_size": m.image_size,
                "megabytes": round(size, 1),
                "tokenizer": m.tokenizer is not None,
                "demo": m.demo is not None,
                "folder": str(bundle.folder),
            }
        )
    return bundles, broken


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
