"""What was measured on this machine about a bundle on a backend: `auto` neither guesses nor measures at each start.

`python -m runtime.autotune` runs a bundle on ONNX Runtime and on the other backend, compares and times them, and keeps a
note in the user's cache folder (`$XDG_CACHE_HOME/samwise-runtime`, else `~/.cache/samwise-runtime`): bundles may lie
where nobody may write. A note speaks of exactly these files, library versions and processor, or of nothing; to drop it,
delete it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import platform
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..bundle.manifest import Manifest
from ..errors import InternalError

FASTER = 1.05
"""A backend that is not faster than ONNX Runtime by this factor is not worth a second library in the process."""

PAYBACK = 250
"""Frames after which a slower start must be repaid: ten seconds of video."""


@dataclass(frozen=True, slots=True)
class Note:
    """One trial. Seconds are wall time on that machine; `error` is the largest relative L2 error of a stage."""

    backend: str
    bundle: str
    graphs: str
    versions: str
    processor: str
    threads: int | None
    exact: bool
    error: float
    iou: float
    reference_frame_seconds: float
    frame_seconds: float
    extra_start_seconds: float

    @property
    def speedup(self) -> float:
        return self.reference_frame_seconds / max(self.frame_seconds, 1e-9)

    def objection(self) -> str | None:
        """Why `auto` should not take the backend; None if it should."""
        if not self.exact:
            return f"not exact here (relative error {self.error:.1e}, IoU {self.iou:.4f})"
        if not self.speedup >= FASTER:
            return f"not faster here ({self.speedup:.2f}x)"
        saved = self.reference_frame_seconds - self.frame_seconds
        if self.extra_start_seconds > PAYBACK * saved:
            return f"starts {self.extra_start_seconds:.1f} s later, which {PAYBACK} frames do not repay"
        return None


def fingerprint(manifest: Manifest) -> str:
    """sha256 over the names and hashes of all files of a bundle."""
    return hashlib.sha256(json.dumps(sorted(manifest.files.items())).encode()).hexdigest()


def processor() -> str:
    """Model of the processor and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def versions(*distributions: str) -> str:
    """Installed versions of these distributions, e.g. `openvino 2025.1, onnxruntime 1.22`."""
    from importlib import metadata

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "unknown"

    return ", ".join(f"{name} {version(name)}" for name in distributions)


def installed(module: str) -> bool:
    """Whether a module could be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def folder() -> Path:
    """Where notes are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "samwise-runtime"


def place(backend: str, graphs: str, on: str) -> Path:
    """File of the note about these graphs on this processor."""
    return folder() / f"{backend}-{hashlib.sha256(f'{graphs} {on}'.encode()).hexdigest()[:24]}.json"


def keep(note: Note) -> Path:
    """Write a note, in one step. Raises InternalError when the folder cannot be written."""
    path = place(note.backend, note.graphs, note.processor)
    work = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work.write_text(json.dumps(asdict(note), indent=1) + "\n", encoding="utf-8")
        work.replace(path)
    except OSError as error:
        raise InternalError(
            f"{path}: cannot keep the note ({error.strerror}); set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    return path


def find(backend: str, manifest: Manifest) -> Note | None:
    """The note about these graphs on this processor, whatever the versions; None if there is none that can be read."""
    graphs, on = fingerprint(manifest), processor()
    try:
        data = json.loads(place(backend, graphs, on).read_text(encoding="utf-8"))
        note = Note(**{f.name: data[f.name] for f in fields(Note)})
        numbers = (note.error, note.iou, note.reference_frame_seconds, note.frame_seconds, note.extra_start_seconds)
        usable = isinstance(note.exact, bool) and all(map(math.isfinite, numbers))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None
    return note if usable and (note.graphs, note.processor) == (graphs, on) else None
