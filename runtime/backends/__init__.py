"""Inference libraries. A backend is one file, one class and one line in `BACKENDS`."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any, Protocol

from ..errors import BackendError
from ..spec import StageSpec

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

AUTO = ("ort-cuda", "ort")
"""Order in which `auto` tries them. Engines have to be built first, so TensorRT is used where it is asked for."""


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


def create(name: str, threads: int | None = None) -> Backend:
    """Backend by name; `auto` takes the first that works here. Raises BackendError."""
    if name != "auto":
        return _create(name, threads)
    reasons = []
    for candidate in AUTO:
        try:
            return _create(candidate, threads)
        except BackendError as error:
            log.info("backend %s not used: %s", candidate, error)
            reasons.append(str(error))
    raise BackendError("no backend works here: " + "; ".join(reasons))


def _create(name: str, threads: int | None) -> Backend:
    try:
        module, _, cls = BACKENDS[name].partition(":")
    except KeyError:
        raise BackendError(f"unknown backend {name!r}; choose one of auto, {', '.join(BACKENDS)}") from None
    return getattr(importlib.import_module(module), cls)(threads=threads)
