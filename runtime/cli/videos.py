"""Videos of a folder, a list or a pattern, and which of them have been done."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bundle.bundle import choose, file_sha256
from ..bundle.manifest import MANIFEST
from ..errors import UserError
from ..media.frame_names import natural_key, unique_names
from ..media.image_files import IMAGE_SUFFIXES
from ..media.paths import glob_files, local_path, split_pattern
from .output_folder import LINES, MASKS, OVERLAY_VIDEO, RESULTS, identities, read_head

_SUFFIXES = ".3gp .asf .avi .flv .h264 .h265 .hevc .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .webm .wmv"
VIDEO_SUFFIXES = tuple(_SUFFIXES.split())
"""Endings of the videos of a folder; files that are named one by one, or by a pattern, may have any."""

_SHAPING = "stride max_frames strict conditional_memory window latency reference_quirks"
_SHAPING += " detect_every temporal_disambiguation max_objects"
SHAPING = (*_SHAPING.split(), "overlay", "sound", "masks", "format")
"""Options that shape the files of a run."""


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """A video to process: its path, its folder of results, and what `results.json` records of the request."""

    path: Path
    out: Path
    request: dict[str, Any]


def plan(args: argparse.Namespace) -> tuple[list[Video], int]:
    """Return the videos to process, and the number of those that are done.

    A video is done if its `results.json` is complete, for the same file, prompts, options and bundle. Raises UserError,
    unless `args.redo`, where only the file is the same.
    """
    bundle = choose(args.engine, args.model)
    common = {
        "prompts": args.prompt_args,
        "options": {name: getattr(args, name) for name in SHAPING},
        "engine": [bundle.name, file_sha256(bundle.folder / MANIFEST)],
    }
    out, todo, changed = Path(args.out).absolute(), [], []
    found = find_videos(args.videos, out)
    for path, name in zip(found, unique_names(list(found.values())), strict=True):
        # in the form in which it is read again
        video = Video(path, out / name, json.loads(json.dumps({**common, "source": _describe(path)})))
        head = read_head(video.out)
        before = head.get("request") or {"source": video.request["source"]}
        if not head.get("complete") or before != video.request:
            todo.append(video)
            if head.get("complete") and before["source"] == video.request["source"]:
                key = next(key for key in common if before.get(key) != video.request[key])
                changed.append(f"{video.out}: results of {'another' if key == 'engine' else 'other'} {key}")
    if own := next(
        (video for video in todo if video.out.is_dir() and identities([video.out]) & identities(found)), None
    ):
        raise UserError(f"{own.out}: results written here would become frames of the input; choose another --out")
    if changed and not args.redo:
        more = f" (and {len(changed) - 1} more)" if changed[1:] else ""
        raise UserError(f"{changed[0]}{more}; give --redo to replace them, or another --out")
    return todo, len(found) - len(todo)


def find_videos(sources: Sequence[str], out: Path) -> dict[Path, str]:
    """Return the path of every video outside `out`, and its name relative to the folder that holds it or is searched.

    Raises UserError.
    """
    found: dict[Path, str] = {}
    results = identities([out])
    for source in sources:
        path = local_path(source)
        paths, root = [path], path.parent
        if path.is_dir() and (inside := [child for child in path.iterdir() if _is_video(child, VIDEO_SUFFIXES)]):
            paths, root = inside, path
        elif not path.exists():
            paths, root = [Path(file) for file in glob_files(source)], Path(split_pattern(source)[0])
        # `out` may hold the folder of videos, or be that folder
        below = {p: [root / part for part in (p.relative_to(root), *p.relative_to(root).parents[:-1])] for p in paths}
        paths = [p for p in paths if not results & identities(below[p])]
        if path.is_dir() or not path.exists():
            paths = [p for p in paths if _is_video(p, VIDEO_SUFFIXES)] or [p for p in paths if _is_video(p)]
        if not paths and (len(sources) == 1 or not results & identities([path])):  # a shell's * finds `out` as well
            kinds = f"{', '.join(VIDEO_SUFFIXES)}, or folders of images"
            raise UserError(f"{source}: no such file, or no video in it; a folder may hold {kinds}")
        for p in sorted(paths, key=lambda p: natural_key(str(p))):
            found.setdefault(p.absolute(), p.relative_to(root).as_posix())
    return found


def _is_video(path: Path, suffixes: Sequence[str] = ()) -> bool:
    """Tell whether a path is a video or a folder of frames, neither hidden nor a result of this command."""
    in_results = any((path.parent / name).is_file() for name in (RESULTS, LINES))
    if path.name.startswith(".") or (in_results and path.name in (OVERLAY_VIDEO, MASKS)):
        return False
    if path.is_dir():
        names = [child.name.lower() for child in path.iterdir()]
        return not {RESULTS, LINES} & set(names) and any(name.endswith(IMAGE_SUFFIXES) for name in names)
    return path.is_file() and (not suffixes or path.suffix.lower() in suffixes)


def _describe(path: Path) -> dict[str, Any]:
    """Describe a file or the files of a folder, so that a change is noticed."""
    states = [file.stat() for file in (path.iterdir() if path.is_dir() else [path])]
    modified = max((int(state.st_mtime) for state in states), default=0)
    return {"name": path.name, "bytes": sum(state.st_size for state in states), "modified": modified}
