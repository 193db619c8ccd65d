"""Results in the form of YouTube-VIS and SA-Co: `ytvis.json`, a list with a track per object.

A track has null for every frame without the object, and the mean of its scores; objects that are never seen have no
track. `tool` marks the file as of this command; evaluations ignore keys that they do not know.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .output_folder import PART, TOOL
from .summary import object_label
from .write_errors import report_write_errors


def write_ytvis(path: Path, lines: Path, prompts: Mapping[int, int], labels: Mapping[int, str]) -> None:
    """Write the tracks of the frames in `results.jsonl`. Raises InternalError.

    prompts  object id -> prompt id, the number of its category
    labels   prompt id -> label, the name of its category
    """
    part = path.with_name(path.stem + PART)
    with report_write_errors(path):
        try:
            with open(part, "w", encoding="utf-8", newline="\n") as file:
                tracks = (json.dumps(track) for track in _tracks(lines, prompts, labels))
                file.write("[\n " + ",\n ".join(tracks) + "\n]\n")
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def _tracks(lines: Path, prompts: Mapping[int, int], labels: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    seen: dict[int, dict[int, dict[str, Any]]] = {obj: {} for obj in prompts}
    count = 0
    with open(lines, "rb") as file:
        next(file)
        for count, line in enumerate(file, 1):
            for entry in json.loads(line)["objects"]:
                seen[entry["id"]][count - 1] = entry
    for obj, entries in seen.items():
        shown = [entry if (entry := entries.get(i)) and entry["area"] else None for i in range(count)]
        if not any(shown):
            continue
        yield {
            "tool": TOOL,
            "video_id": 1,
            "id": obj,
            "category_id": prompts[obj],
            "category": object_label(labels, prompts[obj], obj),
            "score": round(sum(entry["score"] for entry in entries.values()) / max(len(entries), 1), 6),
            "segmentations": [entry and entry["segmentation"] for entry in shown],
            "bboxes": [entry and entry["bbox"] for entry in shown],
            "areas": [entry and entry["area"] for entry in shown],
        }
