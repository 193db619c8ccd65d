"""Devices: the interface to memory and copies, and its implementation on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""Memory of a `Device`: `numpy.ndarray` on the host, `DeviceArray` on a GPU. Both have `shape`, `dtype`, `nbytes`, views by
index and `reshape`; what else an array offers belongs to one of them."""


class Device(Protocol):
    """Memory and copies of one device. Everything is enqueued in order; only `download` waits."""

    name: str
    max_frames_per_call: int | None
    """Most frames per call of a stage that never mixes them; None: as many as there are."""
    supports_graph_capture: bool
    """Whether `capture` may succeed, so that arrays should stay at fixed addresses."""
    captures: int
    """Graphs captured so far; memory that one of them may use must stay allocated."""

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """Uninitialised memory."""

    def constant(self, host: np.ndarray) -> Any:
        """A copy of `host` on the device, made once."""

    def staging(self, array: Any) -> np.ndarray:
        """Host memory of the shape of `array` to write into before `upload`; the array itself where that is the host."""

    def upload(self, host: np.ndarray, to: Any) -> None:
        """Enqueue a copy of `staging` memory to the device."""

    def download(self, array: Any) -> np.ndarray:
        """Wait for everything enqueued and return the array on the host, valid until the next download of it."""

    def copy(self, source: Any, to: Any) -> None:
        """Enqueue a copy inside the device."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """Record what `work` enqueues without running it. The result enqueues all of it at once, on the same arrays; None
        where it cannot be recorded."""


class Cpu:
    """Host memory. Pages are committed when they are first written, so a generous pool costs nothing until it is used."""

    name = "cpu"
    # one frame's activations nearly fit the cache, eight frames' do not: Hiera tiny at 1024 px takes 0.3 s a frame one by
    # one and 0.9 s in pairs or eights, and a quarter of the memory
    max_frames_per_call: int | None = 1
    supports_graph_capture = False
    captures = 0

    def empty(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        return np.empty(tuple(shape), dtype)

    def constant(self, host: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(host)

    def staging(self, array: np.ndarray) -> np.ndarray:
        return array

    def upload(self, host: np.ndarray, to: np.ndarray) -> None:
        if host is not to:
            np.copyto(to, host)

    def download(self, array: np.ndarray) -> np.ndarray:
        return array

    def copy(self, source: np.ndarray, to: np.ndarray) -> None:
        np.copyto(to, source)

    def capture(self, work: Callable[[], None]) -> None:
        return None
