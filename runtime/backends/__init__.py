"""Inference libraries. A backend is one file, one class and one line in `BACKENDS`."""

from __future__ import annotations

import importlib
import logging

from ..bundle.manifest import Manifest
from ..errors import BackendError
from . import autotune
from .base import Backend

log = logging.getLogger("runtime")

BACKENDS = {
    "ort": "runtime.backends.ort:OrtBackend",
    "ort-cuda": "runtime.backends.ort:OrtCudaBackend",
    "openvino": "runtime.backends.ov:OpenVinoBackend",
    "openvino-bf16": "runtime.backends.ov:OpenVinoBf16Backend",
    "tensorrt": "runtime.backends.trt:TrtBackend",
    "tensorrt_rtx": "runtime.backends.trt_rtx:TrtRtxBackend",
}
"""Name -> class, imported on demand."""

AUTO = ("ort-cuda", "openvino", "ort")
"""Order in which `auto` tries them. TensorRT needs engine files built beforehand, so it is used on request only."""

NEEDS_AUTOTUNE = {"openvino": ("openvino", "onnxruntime")}
"""Backends that `auto` takes only where `runtime.autotune` found them exact and faster, because the speed of compiled
code depends on network and processor -> libraries whose versions the result is valid for, the backend's own first."""


def create(name: str, threads: int | None = None, manifest: Manifest | None = None) -> Backend:
    """Return a backend by name. Raises BackendError.

    `auto` takes the backend that `export --precision auto-cpu` chose, else the first of `AUTO` that works here; one of
    `NEEDS_AUTOTUNE` only with a saved result for `manifest`'s bundle that favours it.
    """
    if name != "auto":
        return _create(name, threads)
    reasons = []
    chosen = autotune.choice(manifest)
    for candidate in dict.fromkeys((chosen, *AUTO) if chosen in BACKENDS else AUTO):
        try:
            if candidate == chosen:
                log.info("backend %s used: chosen by export --precision auto-cpu", candidate)
            elif reason := candidate in NEEDS_AUTOTUNE and _rejection_reason(candidate, manifest):
                log.info("backend %s not used: %s", candidate, reason)
                continue
            return _create(candidate, threads)
        except BackendError as error:
            log.info("backend %s not used: %s", candidate, error)
            reasons.append(str(error))
    raise BackendError("no backend works here: " + "; ".join(reasons))


def _rejection_reason(name: str, manifest: Manifest | None) -> str | None:
    """Return why `auto` must not take a backend of `NEEDS_AUTOTUNE` for this bundle; None if it may."""
    libraries = NEEDS_AUTOTUNE[name]
    if manifest is None:
        return "no bundle to look up a tuning result for"
    if not autotune.installed(libraries[0]):
        return "not installed"
    result = autotune.find(name, manifest)
    if result is None or result.versions != autotune.versions(*libraries):
        return "not tuned for this bundle, processor and version; run `python -m runtime.autotune --engine BUNDLE`"
    return result.rejection_reason()


def _create(name: str, threads: int | None) -> Backend:
    try:
        module, _, cls = BACKENDS[name].partition(":")
    except KeyError:
        raise BackendError(f"unknown backend {name!r}; choose one of auto, {', '.join(BACKENDS)}") from None
    backend: Backend = getattr(importlib.import_module(module), cls)(threads=threads)
    return backend
