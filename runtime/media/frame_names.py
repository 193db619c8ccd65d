"""Names of frames: stems of output files, and pictures of a folder by name."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath

from ..errors import PromptError

MAX_NAME_BYTES = 200
"""Longest name of an output: file systems take 255 bytes, and endings are added to it."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|\.+", re.IGNORECASE | re.DOTALL)
"""Names that Windows keeps for devices, and those of folders above."""


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts frame2 before frame10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), part) if part.isdigit() else (1, 0, part.lower()) for part in parts]


def number_name(number: int, count: int | None) -> str:
    """Return the name of a frame that has only a number, such that names among `count` numbers sort as these do.

    Five digits as in DAVIS, more where the count needs them; eight where it is not known.
    """
    return f"{number:0{8 if count is None else max(5, len(str(count)))}d}"


def unique_names(files: Sequence[str]) -> list[str]:
    """Return a name for the outputs of each file: its stem, or its whole name where others have the same stem.

    Names differ also where case is ignored, and are valid on every system. `files` may be relative paths with `/`.
    """
    paths = list(map(PurePosixPath, files))
    stems = [_valid(path.with_suffix("")) for path in paths]
    same_stem = Counter(map(_folded, stems))
    names = [stem if same_stem[_folded(stem)] == 1 else _valid(path) for stem, path in zip(stems, paths, strict=True)]
    planned, taken = set(map(_folded, names)), set[str]()
    for index, name in enumerate(names):
        if _folded(name) in taken:
            others = (f"{name}_{number}" for number in itertools.count(2))
            names[index] = next(n for n in others if _folded(n) not in planned and _folded(n) not in taken)
        taken.add(_folded(names[index]))
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _valid(path: PurePosixPath) -> str:
    """Return a relative path of valid names."""
    parts = []
    for part in path.parts:
        name = "".join("_" if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in part)
        name = f"_{name}" if _RESERVED.fullmatch(name) else name
        data = os.fsencode(name)
        if len(data) > MAX_NAME_BYTES:  # the end of a name has its number
            name = (data[:40] + b"~" + data[41 - MAX_NAME_BYTES :]).decode("utf-8", "ignore")
        parts.append(name)
    return "/".join(parts)


@dataclass(frozen=True, slots=True)
class PictureNames:
    """Names of the pictures of a folder or list in order, before the stride: of the files, and unique ones."""

    files: Sequence[str]
    unique: Sequence[str]

    def find(self, name: str) -> int:
        """Return the position of the picture of this name, with or without its ending. Raises PromptError."""
        for names in self._kinds():
            found = [index for index, other in enumerate(names) if other == name]
            if len(found) == 1:
                return found[0]
            if found:
                several = ", ".join(self.unique[index] for index in found[:4])
                raise PromptError(f"{len(found)} pictures are named {name}; give one of {several}")
        near = get_close_matches(name, self.unique, 1, 0.0) or self.unique[:1]
        raise PromptError(f"no picture is named {name}; one that exists is {near[0]}")

    def has(self, name: str) -> bool:
        """Tell whether a picture has this name, with or without its ending."""
        return any(name in names for names in self._kinds())

    def _kinds(self) -> tuple[Sequence[str], ...]:
        return self.unique, self.files, [PurePosixPath(file).stem for file in self.files]

    def other_numbered(self, position: int) -> str | None:
        """Return the name of the picture that has `position` as its number, unless it is at that position."""
        if position < len(self.unique) and _number(self.unique[position]) == position:
            return None
        return next((name for name in self.unique if _number(name) == position), None)


def _number(name: str) -> int | None:
    """Return the last number in a name, that of the frame in most conventions."""
    digits = re.findall(r"[0-9]+", name)
    return int(digits[-1]) if digits else None
