"""Versions of the libraries that read a bundle's files, for messages about files that they refuse."""

from __future__ import annotations

import re
from types import ModuleType

LOWEST = {"tokenizers": "0.21", "onnxruntime": "1.20", "openvino": "2026.3"}
"""Lowest versions that the tests have passed with, as in pyproject.toml."""


def remedy(library: ModuleType, damaged: str = "export the bundle again") -> str:
    """Return the version that is installed with what to do about a file that `library` refuses; `damaged`: if it is not
    the version's fault."""
    name, version = library.__name__, str(library.__version__)
    if _numbers(version) < _numbers(LOWEST[name]):
        return f"{name} {version} is installed, {LOWEST[name]} or newer is needed: pip install --upgrade {name}"
    return f"{damaged}, or, if a newer {name} than the installed {version} wrote it: pip install --upgrade {name}"


def _numbers(version: str) -> tuple[int, ...]:
    """Return year or major, and minor; a version without numbers counts as the newest."""
    return tuple(map(int, re.findall(r"\d+", version)[:2])) or (9999,)
