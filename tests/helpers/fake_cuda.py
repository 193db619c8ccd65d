"""CUDA on host memory: the schedule of a GPU runs anywhere, and every driver call is counted."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable

import numpy as np

from runtime.backends.ort import OrtBackend
from runtime.device.cuda import Cuda


class FakeDriver:
    """`runtime.device.Driver` whose device is the host. `calls` counts uploads, downloads, copies, waits, allocations."""

    stream = 0
    capability = 89
    multiprocessors = 4

    def __init__(self) -> None:
        self.kernel_driver = HostKernels(self)
        self.calls: Counter[str] = Counter()
        self.recording: list[Callable[[], None]] | None = None
        self._ranges: dict[str, list[tuple[int, int]]] = {"device": [], "pinned": []}

    def _memory(self, kind: str, size: int):
        memory = np.full(size + 64, 0xFF, np.uint8)  # not zero: reading what nobody wrote must show
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

    def wait_for(self, stream: int) -> None:
        self.calls["wait_for"] += 1

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


class HostKernels:
    """`runtime.device.cubin.CubinDriver` that does on the host what two kernels do on a device (`kernels/reference.py`)."""

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver

    def load(self, cubin: bytes, symbol: str, shared: int):
        return symbol

    def launch(self, function, grid, threads, shared, stream, params) -> None:
        self._driver.calls[function] += 1
        pointers = 7
        values = [ctypes.c_void_p.from_address(params[i]).value for i in range(pointers)]
        count = {"preprocess": 7, "postprocess": 4}[function]
        numbers = [ctypes.c_int32.from_address(params[pointers + i]).value for i in range(count)]
        work = getattr(self, function)
        self._driver.enqueue(lambda: work(grid, values, numbers))

    @staticmethod
    def preprocess(grid, pointers, numbers) -> None:
        """Two passes of fixed-point taps, columns first, rounded to bytes between them; table; zeros around."""
        frame, row_first, row_weight, column_first, column_weight, table, out = pointers
        height, width, rows, columns, size, row_taps, column_taps = numbers
        x = view(frame, (height, width, 3), np.uint8)
        for axis, first, weight, n, taps in (
            (1, column_first, column_weight, columns, column_taps),
            (0, row_first, row_weight, rows, row_taps),
        ):
            index = np.minimum(view(first, (n,), np.int32)[:, None] + np.arange(taps), x.shape[axis] - 1)
            weights = view(weight, (n, taps), np.int32).astype(np.int64)
            total = np.einsum("ik,ik...->i...", weights, np.moveaxis(x, axis, 0)[index].astype(np.int64)) + (1 << 21)
            x = np.moveaxis(np.clip(total >> 22, 0, 255).astype(np.uint8), 0, axis)
        result = view(out, (3, size, size), np.float32)
        result[...] = 0
        for c in range(3):
            result[c, :rows, :columns] = view(table, (3, 256), np.float32)[c][x[:, :, c]]

    @staticmethod
    def postprocess(grid, pointers, numbers) -> None:
        low, row_first, row_weight, column_first, column_weight, packed, stats = pointers
        side, height, width, size = numbers
        objects = grid[1]
        matrices = []
        for first, weight, n in ((row_first, row_weight, height), (column_first, column_weight, width)):
            matrix = np.zeros((n, side))
            index = np.minimum(view(first, (n,), np.int32)[:, None] + np.arange(4), side - 1)
            np.add.at(matrix, (np.arange(n)[:, None], index), view(weight, (n, 4), np.float32))
            matrices.append(matrix)
        masks = (matrices[0] @ view(low, (objects, side, side), np.float32) @ matrices[1].T) > 0
        view(packed, (objects, size), np.uint8)[...] = np.packbits(masks.reshape(objects, -1), axis=1)
        table = view(stats, (objects, 5), np.int32)
        assert not table.any(), "the kernel takes maxima: its statistics must start at zero"
        for n, mask in enumerate(masks):
            if mask.any():
                y, x = np.nonzero(mask)
                table[n] = len(y), width - x.min(), height - y.min(), x.max() + 1, y.max() + 1


def view(address: int, shape, dtype) -> np.ndarray:
    """Host memory at an address, not copied."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


IMAGE_SIGNATURES = {
    "preprocess": (
        ["*u8", "*i32", "*i32", "*i32", "*i32", "*fp32", "*fp32", *["i32"] * 7],
        {"BITS": 22, "BLOCK_Y": 4, "BLOCK_X": 128},
    ),
    "postprocess": (
        ["*fp32", "*i32", "*fp32", "*i32", "*fp32", "*u8", "*i32", *["i32"] * 4],
        {"TAPS": 4, "BLOCK": 128},
    ),
}
