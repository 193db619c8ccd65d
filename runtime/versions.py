"""Versions of libraries, for messages about what they refuse or lack."""

from __future__ import annotations

import re
from importlib import metadata
from types import ModuleType

LOWEST = {"tokenizers": "0.21", "onnxruntime": "1.20", "openvino": "2026.3", "cuda-core": "0.5"}
"""Lowest versions that the tests have passed with, as in pyproject.toml."""


def remedy(library: ModuleType, damaged: str = "export the bundle again") -> str:
    """Return the version that is installed with what to do about a file that `library` refuses; `damaged`: if it is not
    the version's fault."""
    name, version = library.__name__, str(library.__version__)
    if _numbers(version) < _numbers(LOWEST[name]):
        return f"{name} {version} is installed, {LOWEST[name]} or newer is needed: pip install --upgrade {name}"
    return f"{damaged}, or, if a newer {name} than the installed {version} wrote it: pip install --upgrade {name}"


def cuda_core_remedy(failure: str) -> str:
    """Return what to do about a `cuda.core` that cannot be imported. `failure`: the message of the import."""
    try:
        found = metadata.version("cuda-core")
    except metadata.PackageNotFoundError:
        return "a CUDA backend needs cuda-core: pip install 'samwise-runtime[gpu]'"
    if _numbers(found) < _numbers(LOWEST["cuda-core"]):
        reason = f"cuda-core {found} is installed, {LOWEST['cuda-core']} or newer is needed"
    else:
        # cuda-core itself brings no bindings to CUDA; its extras cu12 and cu13 do
        reason = f"cuda-core {found} is installed but cannot be imported ({failure})"
    return f"{reason}: pip install --upgrade 'cuda-core[cu13]'"


def _numbers(version: str) -> tuple[int, ...]:
    """Return year or major, and minor; a version without numbers counts as the newest."""
    return tuple(map(int, re.findall(r"\d+", version)[:2])) or (9999,)
