"""Paths as users give them: with `~`, as `file:` addresses, and as patterns below folders of any name."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from urllib.parse import unquote

from .frame_names import natural_key


def local_path(given: str | Path) -> Path:
    """Return the path of a file, which may be given with `~` or as a `file:` address."""
    text = str(given)
    if os.path.lexists(text):
        return Path(given)
    address = re.match(r"file:(?://(?:localhost(?=/))?)?", text, re.IGNORECASE)
    if address:
        text = text[address.end() :]
        text = text if os.path.lexists(text) else unquote(text)
    return Path(os.path.expanduser(text))


def split_pattern(pattern: str) -> tuple[str, str]:
    """Split a pattern into a folder that exists, which is taken by its name whatever it consists of, and the rest."""
    parts = Path(pattern).parts
    folders = (number for number in range(len(parts) - 1, 0, -1) if Path(*parts[:number]).is_dir())
    number = next(folders, 0)
    return os.path.join(*parts[:number]) if number else "", os.path.join(*parts[number:])


def glob_files(pattern: str) -> list[str]:
    """Return the files that fit a pattern, in natural order.

    Brackets are a set of characters if that fits any file, else themselves.
    """
    folder, rest = split_pattern(pattern)
    below = glob.escape(folder)
    for tried in (os.path.join(below, rest), pattern, os.path.join(below, rest.replace("[", "[[]"))):
        if found := glob.glob(tried, recursive=True):
            return sorted(found, key=natural_key)
    return []
