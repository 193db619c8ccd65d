"""Engines beside ONNX Runtime on the GPU of this machine, before they are published.

TensorRT may match an attention into a fused kernel that computes it wrong, without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias

import numpy as np

from runtime.backends import create
from runtime.backends.ort import OrtBackend
from runtime.backends.trt import TensorRtBackend
from runtime.bundle.bundle import Bundle
from runtime.bundle.manifest import StageSpec
from runtime.errors import BackendError
from runtime.metrics import tensor_error

from ..verify.parity import run_stage

LEAST_COSINE = 0.999
"""Least cosine of an output with that of ONNX Runtime; below, an engine is not published."""

Cosine: TypeAlias = Callable[[Path, StageSpec, Collection[int]], float | None]
"""Engine file, its stage and GPUs -> smallest cosine of an output; None where this machine has no such GPU."""


class Comparison:
    """`Cosine` of a bundle. The backend is created at the first engine that is compared."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        self._bundle, self._name = bundle, name
        self._backend: TensorRtBackend | None = None

    def __call__(self, path: Path, spec: StageSpec, capabilities: Collection[int]) -> float | None:
        """Return the smallest cosine of an output with ONNX Runtime's on random inputs; None without such a GPU."""
        try:
            self._backend = self._backend or create(self._name)  # type: ignore[assignment]
        except BackendError:
            return None
        assert self._backend is not None
        if self._backend.device.capability not in capabilities:
            return None
        return smallest_cosine(self._bundle, self._backend, path, spec)


def smallest_cosine(bundle: Bundle, backend: TensorRtBackend, path: Path, spec: StageSpec) -> float:
    """Return the smallest cosine of an output of the engine in `path` with that of the graph `default`."""
    bounds, rng, plain = bundle.manifest.bounds, np.random.default_rng(0), OrtBackend()
    sizes = {s: min(spec.typical.get(s, bounds[s][1]), bounds[s][1]) for s in spec.symbols}
    inputs = {
        t.name: rng.standard_normal(shape, np.float32).astype(t.dtype)
        if "float" in t.dtype
        else np.zeros(shape, t.dtype)
        for t, shape in ((t, t.resolve(sizes)) for t in spec.inputs)
    }
    want = run_stage(plain.load(bundle.folder / spec.files["default"], spec), spec, plain, inputs, sizes)
    got = run_stage(backend.open(path, spec, bundle.folder), spec, backend, inputs, sizes)
    return min(tensor_error(got[t.name], want[t.name]).cosine for t in spec.outputs)
