"""On-disk cache of backend timings, read by `backend="auto"`.

`python -m runtime.autotune` compares and times a bundle on ONNX Runtime and on another backend, and saves the result in
the user's cache folder, because bundles may be read-only. A result is valid for exactly these files, library versions
and this processor. To discard it, delete the file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import platform
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..bundle.manifest import Manifest
from ..device.workers import num_cores as num_cores
from ..errors import InternalError, summarize
from .cache_folder import cache_folder, replace_file

MIN_SPEEDUP = 1.05
"""Least gain over ONNX Runtime that justifies loading a second library."""

PAYBACK_FRAMES = 250
"""Frames after which a slower start must be repaid: ten seconds of video."""


@dataclass(frozen=True, slots=True)
class TuningResult:
    """Comparison of a backend with ONNX Runtime. Seconds are wall time; `error` is the largest relative L2 error of a
    stage, `iou` the smallest of an object's masks."""

    backend: str
    bundle: str
    fingerprint: str
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

    def rejection_reason(self) -> str | None:
        """Return why `auto` must not choose the backend; None if it may."""
        if not self.exact:
            return f"not exact here (relative error {self.error:.1e}, IoU {self.iou:.4f})"
        if not self.speedup >= MIN_SPEEDUP:
            return f"not faster here ({self.speedup:.2f}x)"
        saved = self.reference_frame_seconds - self.frame_seconds
        if self.extra_start_seconds > PAYBACK_FRAMES * saved:
            return f"starts {self.extra_start_seconds:.1f} s later, which {PAYBACK_FRAMES} frames do not repay"
        return None


def fingerprint(manifest: Manifest) -> str:
    """Return the sha256 over the names and hashes of all files of a bundle."""
    return hashlib.sha256(json.dumps(sorted(manifest.files.items())).encode()).hexdigest()


def processor() -> str:
    """Return the model of the processor and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {num_cores()} cores"


def versions(*distributions: str) -> str:
    """Return the installed versions of these distributions, e.g. `openvino 2025.1, onnxruntime 1.22`."""
    from importlib import metadata  # slow to import, and not needed by most backends

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "unknown"

    return ", ".join(f"{name} {version(name)}" for name in distributions)


def installed(module: str) -> bool:
    """Return whether a module could be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def cache_path(backend: str, bundle_fingerprint: str, processor_name: str) -> Path:
    """Return the file that holds the result for these files on this processor."""
    digest = hashlib.sha256(f"{bundle_fingerprint} {processor_name}".encode()).hexdigest()
    return cache_folder() / f"{backend}-{digest[:24]}.json"


def save(result: TuningResult) -> Path:
    """Write a result in one step and return its path. Raises InternalError when the folder cannot be written."""
    return write(cache_path(result.backend, result.fingerprint, result.processor), asdict(result))


def write(path: Path, record: dict[str, Any]) -> Path:
    """Write a record as JSON in one step and return its path. Raises InternalError."""
    try:
        replace_file(path, (json.dumps(record, indent=1) + "\n").encode())
    except OSError as error:
        raise InternalError(
            f"{path}: cannot save the result ({summarize(error)}); set XDG_CACHE_HOME to a writable folder"
        ) from None
    return path


def find(backend: str, manifest: Manifest) -> TuningResult | None:
    """Return the saved result for these files on this processor, of any versions; None without a readable one."""
    wanted, here = fingerprint(manifest), processor()
    try:
        data = json.loads(cache_path(backend, wanted, here).read_text(encoding="utf-8"))
        result = TuningResult(**{f.name: data[f.name] for f in fields(TuningResult)})
        numbers = (
            result.error,
            result.iou,
            result.reference_frame_seconds,
            result.frame_seconds,
            result.extra_start_seconds,
        )
        usable = isinstance(result.exact, bool) and all(map(math.isfinite, numbers))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None
    return result if usable and (result.fingerprint, result.processor) == (wanted, here) else None


# -- a backend that the user chose at export, within a loss that the user named

CHOICE = "choice"
LIBRARIES = "openvino", "onnxruntime"


def save_choice(backend: str, manifest: Manifest, loss: float, max_loss: float) -> Path:
    """Let `auto` take `backend` for these files on this processor with these libraries, though it is not exact."""
    path = cache_path(CHOICE, fingerprint(manifest), processor())
    return write(path, {"backend": backend, "versions": versions(*LIBRARIES), "loss": loss, "max_loss": max_loss})


def choice(manifest: Manifest | None) -> str | None:
    """Return the backend that `save_choice` noted for these files here; None without one."""
    if manifest is None:
        return None
    try:
        data = json.loads(cache_path(CHOICE, fingerprint(manifest), processor()).read_text(encoding="utf-8"))
        backend, valid = data["backend"], data["versions"] == versions(*LIBRARIES)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None
    return backend if valid and isinstance(backend, str) else None
