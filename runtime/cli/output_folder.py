"""The output folder of a run: the files to write, and those of an earlier run, which are replaced.

A file is replaced or removed only if this command wrote it, which is read from its content: `results.json` and
`results.jsonl` name the tool in their first line; a PNG has a chunk with the tool and a checksum of the file and its
name, and `overlay.mp4` a box with the tool and its size, so that a mask corrected by hand, a copy under another name or
a video cut by another program is kept. What a killed run leaves is recognised as well.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import InternalError, UserError

TOOL = "samwise-runtime"
"""Mark of this command in its files."""

RESULTS, LINES, MASKS, YTVIS = "results.json", "results.jsonl", "masks", "ytvis.json"
OVERLAY_VIDEO, OVERLAY_IMAGE, CONTACT_SHEET = "overlay.mp4", "overlay.png", "contact.png"

Identity = tuple[int, int]
"""Numbers of a device and of a file on it."""

UNFINISHED = f"{TOOL}: unfinished"
"""Comment of a video that is being written."""

PART = f".{TOOL}.part"
"""Ending of files that are being written."""

_JSON_HEAD = re.compile(rb'(\{\s*"format":\s*\d+,|\[\s*\{)\s*"tool":\s*"%b"|\[\s*\]\s*$' % TOOL.encode())
"""Start of results and of tracks; an empty list has no mark, and nothing to lose."""
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
"""Last chunk of every PNG."""


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """An output folder and the kinds of files that a run writes to it.

    path      the folder; it need not exist
    overlay   whether the run draws its results
    masks     whether it writes indexed masks
    is_image  whether the overlay is an image, and not a video with a contact sheet
    ytvis     whether it writes tracks of YouTube-VIS
    """

    path: Path
    overlay: bool = True
    masks: bool = True
    is_image: bool = False
    ytvis: bool = False

    def check(self, inputs: frozenset[Identity] = frozenset()) -> list[Path]:
        """Return the files of an earlier run. Changes nothing.

        Raises UserError if one of `inputs`, or a file that this command did not write, would be replaced or removed,
        or if another run is writing here; InternalError if the folder cannot be written.
        """
        _check_writable(self.path)
        for folder, is_written in ((self.path, self.overlay), (self.path / MASKS, self.masks)):
            if is_written and identities([folder]) & inputs:
                raise UserError(f"{folder}: output written here would become frames of the input; choose another --out")
        earlier = []
        for path in self._existing():
            is_ours, is_written = self._is_ours(path), self.writes(path)
            if (is_ours or is_written) and identities([path]) & inputs:
                raise UserError(f"{path}: an input that this run would replace or delete; choose another --out")
            if is_written and not is_ours:
                raise UserError(f"{path}: not from this command and not replaced; choose another --out or move it")
            if path.name == LINES and _is_locked(path):
                raise UserError(f"{self.path}: another run is writing here; choose another --out or wait for its end")
            if is_ours:
                earlier.append(path)
        return earlier

    def prepare(self) -> None:
        """Create the folder and delete the files of an earlier run, which would look like results of this one."""
        earlier = self.check()
        self.path.mkdir(parents=True, exist_ok=True)
        for path in earlier:
            path.unlink(missing_ok=True)

    def _existing(self) -> Iterator[Path]:
        """Yield all that has the name of an output, or of a part of one."""
        masks = self.path / MASKS
        names = (RESULTS, LINES, YTVIS, OVERLAY_VIDEO, OVERLAY_IMAGE, CONTACT_SHEET)
        yield from (path for name in names if os.path.lexists(path := self.path / name))
        if os.path.lexists(masks) and not masks.is_dir():
            yield masks
        yield from sorted(masks.glob("*.png"))
        yield from (path for folder in (self.path, masks) for path in folder.glob(f"*{PART}") if path.is_file())

    def writes(self, path: Path) -> bool:
        """Tell whether the run writes a file of this name."""
        if path.parent != self.path or path.name == MASKS:
            return self.masks
        images = (OVERLAY_IMAGE,) if self.is_image else (OVERLAY_VIDEO, CONTACT_SHEET)
        if path.name == YTVIS:
            return self.ytvis
        return path.name in (RESULTS, LINES) or (self.overlay and path.name in images)

    @staticmethod
    def _is_ours(path: Path) -> bool:
        """Tell by its content whether this command wrote a file."""
        if not path.is_file():
            return False
        with contextlib.suppress(OSError):
            if path.suffix == ".png":
                return is_marked_png(path.read_bytes(), path.name)
            if path.name == OVERLAY_VIDEO:
                return _is_marked_video(path)
            if path.name == LINES and not path.stat().st_size:  # a full disk leaves it so
                return True
            return path.name.endswith(PART) or _names_tool(path)
        return False


def read_head(folder: Path) -> dict[str, Any]:
    """Return `results.json` of a folder without its frames; nothing if it cannot be read."""
    try:
        with open(folder / RESULTS, encoding="utf-8") as file:
            head = "".join(itertools.takewhile(lambda line: not line.startswith(' "frames": ['), file))
        data = json.loads(head.rstrip().rstrip(",") + "}")
        return data if isinstance(data, dict) else {}
    except (OSError, ValueError):
        return {}


def mark_png(data: bytes, name: str) -> bytes:
    """Insert, before the end of a PNG, a text chunk with the name of this command and a checksum of file and name."""
    body = data.removesuffix(_IEND)
    chunk = b"tEXtSoftware\0%b %08x" % (TOOL.encode(), zlib.crc32(os.fsencode(name), zlib.crc32(body)))
    return body + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + _IEND


def is_marked_png(data: bytes, name: str) -> bool:
    """Tell whether a PNG is as `mark_png` returned it for a file of this name."""
    start = data.rfind(b"tEXtSoftware\0" + TOOL.encode()) - 4
    return start > 0 and data == mark_png(data[:start], name)


def mark_video(path: Path) -> None:
    """Append a box that players skip, with the name of this command and the size of the MP4 before it."""
    with open(path, "ab") as file:
        file.write(_video_mark(file.tell()))


def _video_mark(size: int) -> bytes:
    content = TOOL.encode() + struct.pack(">Q", size)
    return struct.pack(">I", 8 + len(content)) + b"free" + content


def _is_marked_video(path: Path) -> bool:
    """Tell whether a video is as `mark_video` left it, or unfinished."""
    import av

    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END) - len(_video_mark(0))
        if size > 0 and file.seek(size) and file.read() == _video_mark(size):
            return True
    try:
        with av.open(str(path.absolute())) as video:
            return bool(video.metadata.get("comment") == UNFINISHED)
    except (av.FFmpegError, ValueError):
        return False


def _names_tool(path: Path) -> bool:
    """Tell whether a JSON file begins as this command begins its results."""
    with open(path, "rb") as file:
        return _JSON_HEAD.match(file.read(200)) is not None


def identities(paths: Iterable[str | Path]) -> frozenset[Identity]:
    """Return what all names of a file have in common: links, relative paths, other spellings; for those that exist."""
    found = set()
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(path)
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def _is_locked(path: Path) -> bool:
    try:
        import fcntl

        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # a system or file system without locks
        pass
    return False


def lock(file: IO[bytes]) -> None:
    """Show other runs, as long as the file is open, that this one is writing to its folder."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _check_writable(folder: Path) -> None:
    """Raise InternalError if a folder cannot be written, or not be created."""
    place = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    if not place.is_dir():
        reason = f"{place} is not a folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"no permission to write to {place}"
    else:
        return
    raise InternalError(f"{folder}: cannot be written ({reason}); choose another --out")
