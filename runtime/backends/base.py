"""Interfaces of the inference backends."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from ..bundle.bundle import Bundle
from ..bundle.manifest import StageSpec
from ..errors import BundleError


class Stage(Protocol):
    """One loaded graph."""

    spec: StageSpec

    def run(self, **arrays: Any) -> None:
        """Enqueue the stage. `arrays` names every input and output; outputs are written in place, nothing is copied."""


class Backend(Protocol):
    """One inference library on one device. `forms` lists the graph forms it takes, the preferred one first."""

    name: str
    device: Any
    forms: tuple[str, ...]

    def load(self, file: Path, spec: StageSpec) -> Stage: ...


class ProfiledStage:
    """A stage that adds up its calls and seconds. On an asynchronous device the seconds are those of enqueueing."""

    __slots__ = ("calls", "seconds", "spec", "stage")

    def __init__(self, stage: Stage) -> None:
        self.stage, self.spec = stage, stage.spec
        self.calls, self.seconds = 0, 0.0

    def run(self, **arrays: Any) -> None:
        start = time.perf_counter()
        self.stage.run(**arrays)
        self.seconds += time.perf_counter() - start
        self.calls += 1


def load_stages(bundle: Bundle, backend: Backend, without: Collection[str] = ()) -> dict[str, Stage]:
    """Load every whole stage of a bundle but those named, in the form that the backend prefers. Raises BundleError."""
    left_out = {*bundle.subgraphs, *without}
    return {name: load_stage(bundle, backend, name) for name in bundle.manifest.stages if name not in left_out}


def load_stage(bundle: Bundle, backend: Backend, name: str) -> Stage:
    """Load one stage in the form that the backend prefers. Raises BundleError."""
    spec = bundle.manifest.stages[name]
    form = next((f for f in backend.forms if f in spec.files), None)
    if form is None:
        raise BundleError(
            f"{bundle.folder}: stage {name} has no form that {backend.name} takes "
            f"({', '.join(backend.forms)}); export the bundle again"
        )
    return backend.load(bundle.folder / spec.files[form], spec)
