"""Where arrays live. The schedule in `models/` asks a device for memory and never looks at the values in it.

`Cpu` hands out numpy arrays. A CUDA device hands out arrays that expose `__cuda_array_interface__` and support the same
few operations: slicing of leading dimensions, `shape`, `dtype`.
"""

from __future__ import annotations

from typing import Any, Protocol, Sequence

import numpy as np


class Device(Protocol):
    """Memory and copies of one device. Everything is enqueued in order; only `download` and `synchronize` wait."""

    name: str

    def empty(self, shape: Sequence[int], dtype: str) -> Any: ...

    def upload(self, host: np.ndarray, to: Any) -> None: ...

    def download(self, array: Any) -> np.ndarray: ...

    def copy(self, source: Any, to: Any) -> None: ...

    def synchronize(self) -> None: ...


class Cpu:
    """Host memory. Pages are committed when they are first written, so a generous pool costs nothing until it is used."""

    name = "cpu"

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        return np.empty(tuple(shape), dtype)

    def upload(self, host: np.ndarray, to: np.ndarray) -> None:
        np.copyto(to, host)

    def download(self, array: np.ndarray) -> np.ndarray:
        return array

    def copy(self, source: np.ndarray, to: np.ndarray) -> None:
        np.copyto(to, source)

    def synchronize(self) -> None:
        pass
