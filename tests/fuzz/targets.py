"""Readers of untrusted input, with examples and a strategy of damaged inputs."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis.strategies import SearchStrategy

from .invariants import check_invariants


@dataclass(frozen=True, slots=True)
class Target:
    """`prepare` writes an input into a scratch folder and returns the function that reads it; `examples` are inputs to
    start from, `inputs` damaged ones."""

    prepare: Callable[[Any, Path], Callable[[], Any]]
    examples: Callable[[], list[Any]]
    inputs: SearchStrategy[Any]

    def check(self, value: Any) -> str:
        """Read an input. Return "taken" or "refused"; raise InvariantViolation or the error of the reader."""
        with tempfile.TemporaryDirectory(prefix="fuzz-") as parent:
            inside = Path(parent, "inside")
            inside.mkdir()
            return check_invariants(self.prepare(value, inside), Path(parent))


def target(name: str) -> Target:
    """Import one of `TARGETS`."""
    return importlib.import_module(f".{name}", __package__).TARGET
