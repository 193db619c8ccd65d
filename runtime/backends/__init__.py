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
"""Name -> class, imported when asked for."""

AUTO = ("ort-cuda", "openvino", "ort")
"""Order in which `auto` tries them. Engines have to be built first, so TensorRT is used where it is asked for."""

ON_TRIAL = {"openvino": ("openvino", "onnxruntime")}
"""Backends that `auto` takes only where a trial found them exact and faster (`backends.notes`) -> the libraries whose
versions the trial was about, the backend's own first. How fast a compiler's code is depends on network and
processor."""


def create(name: str, threads: int | None = None, manifest: Manifest | None = None) -> Backend:
    """Backend by name; `auto` takes the first that works here, and that a trial of `manifest`'s bundle spoke for where
    one is needed. Raises BackendError."""
    if name != "auto":
        return _create(name, threads)
    reasons = []
    for candidate in AUTO:
        try:
            if objection := candidate in ON_TRIAL and _objection(candidate, manifest):
                log.info("backend %s not used: %s", candidate, objection)
                continue
            return _create(candidate, threads)
        except BackendError as error:
            log.info("backend %s not used: %s", candidate, error)
            reasons.append(str(error))
    raise BackendError("no backend works here: " + "; ".join(reasons))


def _objection(name: str, manifest: Manifest | None) -> str | None:
    """What keeps `auto` from taking a backend of `ON_TRIAL` for this bundle; None if nothing does."""
    libraries = ON_TRIAL[name]
    if manifest is None:
        return "no bundle to look for a trial of"
    if not autotune.installed(libraries[0]):
        return "not installed"
    note = autotune.find(name, manifest)
    if note is None or note.versions != autotune.versions(*libraries):
        return "not tried with this bundle, processor and version; python -m runtime.autotune --engine BUNDLE tries it"
    return note.objection()


def _create(name: str, threads: int | None) -> Backend:
    try:
        module, _, cls = BACKENDS[name].partition(":")
    except KeyError:
        raise BackendError(f"unknown backend {name!r}; choose one of auto, {', '.join(BACKENDS)}") from None
    return getattr(importlib.import_module(module), cls)(threads=threads)
