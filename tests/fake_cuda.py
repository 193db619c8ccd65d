"""CUDA on host memory: the schedule of a GPU runs anywhere, and every driver call is counted."""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import Callable

import numpy as np

from runtime.backends.ort import OrtBackend
from runtime.device import Cuda


class FakeDriver:
    """`runtime.device.Driver` whose device is the host. `calls` counts uploads, downloads, copies, waits, allocations."""

    stream = 0
    capability = 89

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.recording: list[Callable[[], None]] | None = None
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

    def enqueue(self, work: Callable[[], None]) -> None:
        """What a library puts on the stream: done at once, or recorded."""
        work() if self.recording is None else self.recording.append(work)

    def copy(self, to: int, source: int, size: int) -> None:
        name = {("device", "pinned"): "upload", ("pinned", "device"): "download", ("device", "device"): "copy"}
        name = name[self._kind(to, size), self._kind(source, size)]
        assert self.recording is None or name == "copy", "a recording holds nothing that touches the host"
        self.calls[name] += self.recording is None
        self.enqueue(lambda: ctypes.memmove(to, source, size))

    def synchronize(self) -> None:
        assert self.recording is None, "waiting while recording is an error on a real device"
        self.calls["wait"] += 1

    def begin_capture(self):
        self.recording = []
        return self.recording

    def end_capture(self, recording, keep: bool):
        self.recording = None
        self.calls["capture"] += keep
        return recording if keep else None

    def launch(self, graph) -> None:
        self.calls["launch"] += 1
        for work in graph:
            work()


class FakeCudaBackend(OrtBackend):
    """ONNX Runtime on the host, handed pointers by the fake device."""

    name = "fake-cuda"
    forms = ("default",)

    def __init__(self, threads=None) -> None:
        super().__init__(threads)
        self.device = Cuda(FakeDriver())

    def load(self, file, spec):
        return Enqueued(super().load(file, spec), self.device.driver)


class Enqueued:
    """A stage that runs when the stream reaches it."""

    def __init__(self, stage, driver: FakeDriver) -> None:
        self.stage, self.spec, self._driver = stage, stage.spec, driver

    def run(self, **arrays) -> None:
        self._driver.enqueue(lambda: self.stage.run(**arrays))
