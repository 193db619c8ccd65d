"""Content of the toy bundles of SAMWISE and SAM 2 in memory."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from helpers import toy_sam2, toy_samwise


@functools.cache
def bundles() -> dict[str, dict[str, bytes]]:
    """Files of the toy bundles by bundle and name."""
    with tempfile.TemporaryDirectory() as folder:
        built = {m.__name__.split(".")[-1]: m.build(Path(folder, m.__name__)) for m in (toy_samwise, toy_sam2)}
        return {name: {p.name: p.read_bytes() for p in sorted(path.iterdir())} for name, path in built.items()}


def manifest(base: str) -> dict[str, Any]:
    """Manifest of a toy bundle."""
    return json.loads(bundles()[base]["manifest.json"])
