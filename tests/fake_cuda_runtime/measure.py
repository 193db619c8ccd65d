"""Calls of one warm run of every stage of bundles on the fake CUDA runtime, as JSON on standard output.

    LD_LIBRARY_PATH=stubs PYTHONPATH=packages:. python tests/fake_cuda_runtime/measure.py engines/nano [...]

A process of its own: it imports the onnxruntime of `packages`, and the loader finds the libraries of `stubs`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.base import Stage, load_stage
from runtime.backends.ort import OrtCudaBackend, load_cuda_libraries
from runtime.bundle.bundle import Bundle, choose
from runtime.bundle.manifest import TensorSpec
from runtime.device.array import DeviceArray
from runtime.device.base import Cpu
from runtime.errors import SamwiseRuntimeError

WARM_UP = 2
"""Runs before the one that is counted: the arena grows in the first, and cuBLAS chooses."""


class FakeBackend(OrtCudaBackend):
    """The CUDA backend without cuda-core: memory is the host's, and the stream a number."""

    def _create_device(self) -> Any:
        load_cuda_libraries(self._ort)
        self._stream = 1 << 16
        return Cpu()


class Counter:
    """The calls that `runtime.c` counts."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcudart.so.13")

    def reset(self) -> None:
        self._library.fake_reset()

    def read(self) -> dict[str, int]:
        text = ctypes.create_string_buffer(1 << 14)
        self._library.fake_counts(text, ctypes.c_size_t(len(text)))
        return {name: int(number) for name, number in (line.split() for line in text.value.decode().splitlines())}


def sizes_of(bundle: Bundle, name: str) -> dict[str, dict[str, int]]:
    """Return a size for every symbol: what an engine is tuned for, and several, all different."""
    spec, bounds = bundle.manifest.stages[name], bundle.manifest.bounds
    symbols = sorted(spec.symbols)
    return {
        "typical": {s: min(spec.typical.get(s, bounds[s][1]), bounds[s][1]) for s in symbols},
        "several": {s: min(max(bounds[s][0], number), bounds[s][1]) for number, s in enumerate(symbols, 2)},
    }


def measure(stage: Stage, sizes: dict[str, int], counter: Counter) -> dict[str, int]:
    """Return the calls of one run of a stage, with zeros in every input."""
    owners: list[np.ndarray] = []

    def array(tensor: TensorSpec) -> DeviceArray:
        owners.append(np.zeros(tensor.resolve(sizes), tensor.dtype))
        return DeviceArray(owners[-1].ctypes.data, owners[-1].shape, owners[-1].dtype)

    arrays = {t.name: array(t) for t in (*stage.spec.inputs, *stage.spec.outputs)}
    for _ in range(WARM_UP):
        stage.run(**arrays)
    counter.reset()
    stage.run(**arrays)
    return counter.read()


def main(folders: list[str]) -> None:
    """Print sizes -> bundle -> stage -> calls, or the error of a stage."""
    backend, counter = FakeBackend(), Counter()
    results: dict[str, dict[str, dict[str, Any]]] = {"typical": {}, "several": {}}
    for folder in folders:
        bundle = choose(folder)
        found = {which: results[which].setdefault(Path(folder).name, {}) for which in results}
        for name in sorted(bundle.manifest.stages):
            try:
                stage = load_stage(bundle, backend, name)
                for which, sizes in sizes_of(bundle, name).items():
                    found[which][name] = measure(stage, sizes, counter)
            except SamwiseRuntimeError as error:
                found["typical"][name] = {"error": str(error)}
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
