"""Text files in any encoding of Unicode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UserError, summarize


def read_text(path: Path) -> str:
    """Read a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark. Raises UserError."""
    try:
        data = path.read_bytes()
        return data.decode(json.detect_encoding(data))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({summarize(error)}); save it as UTF-8") from None


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError, also for a key that stands twice: one of its values would be lost."""
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({summarize(error)})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return made
