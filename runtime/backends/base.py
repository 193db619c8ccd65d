"""Interfaces of the inference backends."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from ..bundle.bundle import Bundle
from ..bundle.manifest import StageSpec
from ..device.base import Device
from ..errors import BundleError


class Stage(Protocol):
    """One loaded graph, or its replacement."""

    spec: StageSpec

    def run(self, **arrays: Any) -> None:
        """Enqueue the stage. `arrays` names every input and output; outputs are written in place, nothing is copied."""


class Backend(Protocol):
    """One inference library on one device. `variants`: graph variants that it accepts, the preferred one first."""

    name: str
    variants: tuple[str, ...]

    @property
    def device(self) -> Device:
        """The device that arrays and streams belong to."""

    def load(self, file: Path, spec: StageSpec) -> Stage:
        """Load the graph in `file`. Raises BundleError."""


class ProfiledStage:
    """A stage that adds up its calls and seconds. On an asynchronous device the seconds are those of enqueueing."""

    __slots__ = ("_lock", "calls", "seconds", "spec", "stage")

    def __init__(self, stage: Stage) -> None:
        self.stage, self.spec = stage, stage.spec
        self.calls, self.seconds = 0, 0.0
        self._lock = threading.Lock()

    def run(self, **arrays: Any) -> None:
        start = time.perf_counter()
        self.stage.run(**arrays)
        seconds = time.perf_counter() - start
        with self._lock:  # frames may run side by side
            self.seconds += seconds
            self.calls += 1


def load_stages(bundle: Bundle, backend: Backend, without: Collection[str] = ()) -> dict[str, Stage]:
    """Load every whole stage of a bundle but those in `without`. Raises BundleError."""
    excluded = {*bundle.subgraphs, *without}
    return {name: load_stage(bundle, backend, name) for name in bundle.manifest.stages if name not in excluded}


def load_stage(bundle: Bundle, backend: Backend, name: str) -> Stage:
    """Load one stage in the variant that the backend prefers. Raises BundleError."""
    spec = bundle.manifest.stages[name]
    variant = next((v for v in backend.variants if v in spec.files), None)
    if variant is None:
        raise BundleError(
            f"{bundle.folder}: stage {name} has no variant that {backend.name} accepts "
            f"({', '.join(backend.variants)}); export the bundle again"
        )
    try:
        return backend.load(bundle.folder / spec.files[variant], spec)
    except BundleError:
        bundle.require_contents()  # a library's message about a Git LFS pointer does not say that it is one
        raise
