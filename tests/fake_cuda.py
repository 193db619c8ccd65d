"""CUDA on host memory: the schedule of a GPU runs anywhere, and every driver call is counted."""

from __future__ import annotations

import ctypes
from collections import Counter

import numpy as np

from runtime.backends.ort import OrtBackend
from runtime.device import Cuda


class FakeDriver:
    """`runtime.device.Driver` whose device is the host. `calls` counts uploads, downloads, copies, waits, allocations."""

    stream = 0

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._ranges: dict[str, list[tuple[int, int]]] = {"device": [], "pinned": []}

    def _memory(self, kind: str, size: int):
        memory = np.full(size + 64, 0xFF, np.uint8)     # not zero: reading what nobody wrote must show
        ptr = memory.ctypes.data
        self._ranges[kind].append((ptr, ptr + size))
        self.calls[kind] += 1
        return ptr, memory

    def allocate(self, size: int):
        return self._memory("device", size)

    def pinned(self, size: int):
        return self._memory("pinned", size)

    def _kind(self, ptr: int, size: int) -> str:
        for kind, ranges in self._ranges.items():
            if any(a <= ptr and ptr + size <= b for a, b in ranges):
                return kind
        raise AssertionError("copy outside of everything that was allocated")

    def copy(self, to: int, source: int, size: int) -> None:
        name = {("device", "pinned"): "upload", ("pinned", "device"): "download", ("device", "device"): "copy"}
        self.calls[name[self._kind(to, size), self._kind(source, size)]] += 1
        ctypes.memmove(to, source, size)

    def synchronize(self) -> None:
        self.calls["wait"] += 1


class FakeCudaBackend(OrtBackend):
    """ONNX Runtime on the host, handed pointers by the fake device."""

    name = "fake-cuda"
    forms = ("default",)

    def __init__(self, threads=None) -> None:
        super().__init__(threads)
        self.device = Cuda(FakeDriver())
