"""The user's cache folder, and files in it that are replaced in one step."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/samwise-runtime`, else `~/.cache/samwise-runtime` (Windows: in `%LOCALAPPDATA%`).

    Raises RuntimeError for a user without a home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "samwise-runtime"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that concurrent readers see either the old or the new content. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
