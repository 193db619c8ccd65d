"""Text files in any encoding of Unicode."""

from __future__ import annotations

import json
from pathlib import Path

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
