"""Interface to memory and copies of a device, and its implementation on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from .lock import DeviceLock
from .workers import Workers

Array: TypeAlias = Any
"""Memory of a `Device`: `numpy.ndarray` on the host, `DeviceArray` on a GPU. Both have `shape`, `dtype`, `nbytes`,
views by index and `reshape`; what else an array offers belongs to one of them."""


class Device(Protocol):
    """Memory and copies of one device. Work is enqueued in order; only `download` waits."""

    name: str
    max_frames_per_call: int | None
    """Most frames per call of a stage that never mixes them; None: as many as there are."""
    supports_graph_capture: bool
    """Ability to `capture`, for which arrays should stay at fixed addresses."""
    requires_graphs: bool
    """Whether a capture that fails raises."""
    records_stages: bool
    """Whether stages may be captured one by one, at any number of shapes."""
    captures: int
    """Graphs captured so far; memory that one of them may use must stay allocated."""
    workers: Workers
    """Threads of the host that run frames side by side; one where work is enqueued."""
    lock: DeviceLock
    """Whatever uses the device, its arrays, or stages on it runs under it."""

    def empty(self, shape: Sequence[int], dtype: str) -> Array:
        """Allocate uninitialised memory."""

    def constant(self, host: np.ndarray) -> Array:
        """Copy `host` to the device, once."""

    def staging(self, array: Array) -> np.ndarray:
        """Return host memory of the shape of `array`, to fill before `upload`; on the host, the array itself.

        Each call before the next wait returns other memory, because uploads are under way until then.
        """

    def upload(self, host: np.ndarray, to: Array) -> None:
        """Enqueue a copy of `staging` memory to the device."""

    def download(self, array: Array) -> np.ndarray:
        """Wait for all enqueued work and return the array on the host, valid until its next download or staging."""

    def download_all(self, arrays: Sequence[Array]) -> list[np.ndarray]:
        """Do the same for several arrays, with one wait."""

    def begin_download(self, array: Array) -> Callable[[], np.ndarray]:
        """Enqueue a download; return what waits for it, and not for work behind it, and returns the host's array.

        On CUDA that is valid until it is waited for and the array is downloaded again; on the host it is the array.
        """

    def copy(self, source: Array, to: Array) -> None:
        """Enqueue a copy inside the device."""

    def capture(self, work: Callable[[], None], beside: bool = False) -> Callable[[], None] | None:
        """Capture the operations that `work` enqueues, as a graph, without running them; return its launcher.

        beside  the launcher enqueues it on a second stream: behind everything that is enqueued by then, beside what is
                enqueued later, up to the next `join`
        None where it cannot be captured; raises BackendError there if graphs are required.
        """

    def join(self) -> None:
        """Run everything enqueued from now on after the graphs that were launched on the second stream."""


class Cpu:
    """Host memory. Pages are committed on first write, so a large pool costs nothing until it is used."""

    name = "cpu"
    # the activations of one frame nearly fit the cache, those of eight do not: Hiera tiny at 1024 px takes 0.3 s per
    # frame one by one, and 0.9 s and four times the memory in batches of two or eight
    max_frames_per_call: int | None = 1
    supports_graph_capture = False
    requires_graphs = False
    records_stages = False
    captures = 0

    def __init__(self, workers: int = 1) -> None:
        self.workers = Workers(workers)
        self.lock = DeviceLock(is_within=lambda: self.workers.is_beside)

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

    def download_all(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(arrays)

    def begin_download(self, array: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: array

    def copy(self, source: np.ndarray, to: np.ndarray) -> None:
        np.copyto(to, source)

    def capture(self, work: Callable[[], None], beside: bool = False) -> None:
        return None

    def join(self) -> None:
        pass
