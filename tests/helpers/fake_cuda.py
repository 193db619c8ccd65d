"""Fake CUDA driver on host memory that counts every call."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable

import numpy as np

from runtime.backends.ort import OrtBackend
from runtime.device.cuda import Cuda
from runtime.kernels import reference

BETWEEN = 8
"""Work of the first stream between that of the second one."""


class FakeDriver:
    """`runtime.device.driver.Driver` on host memory. `calls` counts uploads, downloads, copies, waits, allocations,
    and what is launched: stages and graphs."""

    index = 0
    stream = 0
    capability = 89
    multiprocessors = 4

    def __init__(self) -> None:
        self.kernel_driver = HostKernels(self)
        self.calls: Counter[str] = Counter()
        self._thread = threading.local()
        """Whether the device's context is current, in each thread; at first only in the one that made the driver."""
        self.make_current()
        self.recording: list[Callable[[], None]] | None = None
        self._stream: deque[Callable[[], None]] = deque()
        """Work that was enqueued since the host waited last."""
        self._second: deque[Callable[[], None]] = deque()
        """Work on the second stream."""
        self.others: dict[int, deque[Callable[[], None]]] = {}
        """Work of other libraries by their stream, which runs when ours has waited for it."""
        self._turn = 0
        self._is_second_busy = False
        """Whether it is in the middle of its work, which may be to wait."""
        self.second_runs = "late"
        """When it runs: as "late" as a device may run it, as "early", or "between" the work of the other stream."""
        self._allocations: dict[int, tuple[int, str]] = {}
        """Address -> size and kind of memory that is still allocated: an address may be used again as another kind."""

    def _memory(self, kind: str, size: int):
        self.require_context()
        memory = np.full(size + 64, 0xFF, np.uint8)  # not zero: reading uninitialised memory must show
        self.calls[kind] += 1
        return self.register(memory, kind), memory

    def register(self, memory: np.ndarray, kind: str) -> int:
        """Treat `memory` as "device" or "pinned" memory while it exists; returns its address."""
        ptr = memory.ctypes.data
        self._allocations[ptr] = (memory.nbytes, kind)
        weakref.finalize(memory, self._allocations.pop, ptr).atexit = False
        return ptr

    def allocated(self, kind: str) -> int:
        """Number of allocations of this kind that exist."""
        return sum(of == kind for _, of in self._allocations.values())

    def make_current(self) -> None:
        self._thread.current = True

    def require_context(self) -> None:
        assert getattr(self._thread, "current", False), "invalid device context (201): not current in this thread"

    def allocate(self, size: int):
        return self._memory("device", size)

    def pinned(self, size: int):
        return self._memory("pinned", size)

    def _kind(self, ptr: int, size: int) -> str:
        for start, (length, kind) in self._allocations.items():
            if start <= ptr and ptr + size <= start + length:
                return kind
        raise AssertionError("copy outside of allocated memory")

    def enqueue(self, work: Callable[[], None]) -> None:
        """Record work, or let it wait as on a stream: it runs when the host waits, on what memory holds by then."""
        self.require_context()
        (self._stream if self.recording is None else self.recording).append(work)

    def copy(self, to: int, source: int, size: int) -> None:
        name = {("device", "pinned"): "upload", ("pinned", "device"): "download", ("device", "device"): "copy"}
        name = name[self._kind(to, size), self._kind(source, size)]
        assert self.recording is None or name == "copy", "a recording holds nothing that touches the host"
        self.calls[name] += self.recording is None
        self.calls[f"{name} bytes"] += size
        self.enqueue(lambda: ctypes.memmove(to, source, size))

    def synchronize(self) -> None:
        self.require_context()
        assert self.recording is None, "waiting while recording is an error on a real device"
        self.calls["wait"] += 1
        while self._stream:
            self._run_first(self._stream)

    def _run_first(self, stream: deque) -> None:
        busy, self._is_second_busy = self._is_second_busy, self._is_second_busy or stream is self._second
        stream.popleft()()
        self._is_second_busy = busy
        self._turn = (self._turn + 1) % BETWEEN
        if self.second_runs == "between" and self._turn == 0 and self._second and not busy:
            self._run_first(self._second)

    def record_event(self):
        assert self.recording is None
        self._stream.append(event := lambda: None)  # a function of its own
        return event

    def wait_event(self, event) -> None:
        """Wait for the work in front of the event; `calls["behind"]` counts waits that leave stages behind it."""
        self.calls["wait"] += 1
        while event in self._stream:
            self._run_first(self._stream)
        self.calls["behind"] += any(hasattr(work, "is_stage") for work in self._stream)

    def fork(self) -> None:
        self._order(self._stream, self._second)

    def join(self) -> None:
        self._order(self._second, self._stream)

    def _order(self, first: deque, then: deque) -> None:
        """Let one stream wait for what another one holds now."""
        assert self.recording is None
        first.append(mark := lambda: None)

        def wait() -> None:
            while mark in first:
                self._run_first(first)

        then.append(wait)

    def wait_for(self, stream: int) -> None:
        self.require_context()
        self.calls["wait_for"] += 1
        if stream in self.others:
            self._order(self.others[stream], self._stream)

    def begin_capture(self):
        self.require_context()
        self.recording = []
        return self.recording

    def end_capture(self, recording, keep: bool):
        self.recording = None
        self.calls["capture"] += keep
        return recording if keep else None

    def launch(self, graph, beside: bool = False) -> None:
        self.require_context()
        self.calls["launch"] += 1
        self.calls["beside"] += beside
        (self._second if beside else self._stream).extend(graph)
        while beside and self.second_runs == "early" and self._second:
            self._run_first(self._second)


class FakeCudaBackend(OrtBackend):
    """ONNX Runtime on the host, handed pointers by the fake device."""

    name = "fake-cuda"
    variants = ("default",)

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
        host = [name for name, array in arrays.items() if isinstance(array, np.ndarray)]
        assert not host, f"{self.spec.name}: {host} are addresses of the host"
        self._driver.calls["stage"] += self._driver.recording is None

        def work() -> None:
            self.stage.run(**arrays)

        work.is_stage = True
        self._driver.enqueue(work)


class HostKernels:
    """`runtime.device.cubin.CubinDriver` that runs the formulas of `kernels/reference.py` in place of the kernels."""

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver

    def load(self, cubin: bytes, symbol: str, shared: int):
        self._driver.require_context()
        return symbol

    def launch(self, function, grid, threads, shared, stream, params) -> None:
        self._driver.calls[function] += 1
        signature = IMAGE_SIGNATURES[function][0]
        pointers, count = sum(kind.startswith("*") for kind in signature), signature.count("i32")
        values = [ctypes.c_void_p.from_address(params[i]).value for i in range(pointers)]
        numbers = [ctypes.c_int32.from_address(params[pointers + i]).value for i in range(count)]
        work = getattr(self, function)
        self._driver.enqueue(lambda: work(grid, values, numbers))

    @staticmethod
    def preprocess(grid, pointers, numbers) -> None:
        frame, row_first, row_weight, column_first, column_weight, table, out = pointers
        height, width, rows, columns, size, row_taps, column_taps = numbers
        view(out, (3, size, size), np.float32)[...] = reference.preprocess_with_taps(
            view(frame, (height, width, 3), np.uint8),
            taps(row_first, row_weight, rows, row_taps, np.int32),
            taps(column_first, column_weight, columns, column_taps, np.int32),
            size,
            view(table, (3, 256), np.float32),
        )

    @staticmethod
    def preprocess_float(grid, pointers, numbers) -> None:
        frame, row_first, row_weight, column_first, column_weight, unit, norm, out = pointers
        height, width, rows, columns, size, row_taps, column_taps = numbers
        view(out, (3, size, size), np.float32)[...] = reference.preprocess_float(
            view(frame, (height, width, 3), np.uint8),
            taps(row_first, row_weight, rows, row_taps, np.float64),
            taps(column_first, column_weight, columns, column_taps, np.float64),
            size,
            view(unit, (256,), np.float32),
            view(norm, (2, 3), np.float32),
        )

    @staticmethod
    def postprocess(grid, pointers, numbers) -> None:
        """The kernel takes maxima: of x0 and y0 it writes the distance from the right and from the bottom."""
        low, row_first, row_weight, column_first, column_weight, packed, stats = pointers
        side, height, width, size = numbers
        objects = grid[1]
        masks, found = reference.postprocess(
            view(low, (objects, side, side), np.float32),
            reference.mask_matrix(taps(row_first, row_weight, height, reference.MASK_TAPS, np.float32), side),
            reference.mask_matrix(taps(column_first, column_weight, width, reference.MASK_TAPS, np.float32), side),
        )
        view(packed, (objects, size), np.uint8)[...] = masks
        table = view(stats, (objects, 5), np.int32)
        assert not table.any(), "the kernel takes maxima: its statistics must start at zero"
        area, x0, y0, x1, y1 = found.T
        filled = area > 0
        table[...] = np.stack([area, (width - x0) * filled, (height - y0) * filled, x1, y1], 1)


def taps(first: int, weight: int, target: int, count: int, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Taps of one axis at two addresses, as `reference.pillow_taps` and `mask_taps` return them."""
    return view(first, (target,), np.int32), view(weight, (target, count), dtype)


def view(address: int, shape, dtype) -> np.ndarray:
    """Host memory at an address, not copied."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


IMAGE_SIGNATURES = {
    "preprocess": (
        ["*u8", "*i32", "*i32", "*i32", "*i32", "*fp32", "*fp32", *["i32"] * 7],
        {"BITS": 22, "BLOCK_Y": 4, "BLOCK_X": 128},
    ),
    "preprocess_float": (
        ["*u8", "*i32", "*fp64", "*i32", "*fp64", "*fp32", "*fp32", "*fp32", *["i32"] * 7],
        {"BLOCK_Y": 4, "BLOCK_X": 128},
    ),
    "postprocess": (
        ["*fp32", "*i32", "*fp32", "*i32", "*fp32", "*u8", "*i32", *["i32"] * 4],
        {"TAPS": 4, "BLOCK": 128},
    ),
}
