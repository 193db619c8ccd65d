"""Memory, copies and graphs of one CUDA device, enqueued on one stream; graphs also on a second one beside it."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import BackendError, summarize
from .array import DeviceArray
from .cubin import CubinDriver
from .driver import CudaCore, Driver, Opaque
from .lock import DeviceLock
from .workers import Workers

log = logging.getLogger("runtime")


class Allocation:
    """Owner of one allocation, shared by all views of it; the driver's own object may not be weakly referenced."""

    __slots__ = ("__weakref__", "memory")

    def __init__(self, memory: Opaque) -> None:
        self.memory = memory


@dataclass(slots=True)
class PinnedBuffer:
    """Pinned memory of the host, its owner, and the number of marks in the stream when it was given out last."""

    host: np.ndarray
    owner: Opaque
    num_marks: int = -1


class Progress:
    """Marks in a stream, which are events and waits, and how many of them the host has waited for."""

    def __init__(self) -> None:
        self.num_marks = self.num_passed = 0
        self._kept: deque[tuple[int, object]] = deque()

    def add(self) -> int:
        """Return the number of a new mark behind everything that is enqueued."""
        self.num_marks += 1
        return self.num_marks

    def reach(self, mark: int) -> None:
        """Take note that the host has waited for a mark."""
        self.num_passed = max(self.num_passed, mark)
        while self._kept and self._kept[0][0] < self.num_passed:
            self._kept.popleft()

    def keep(self, owner: object) -> None:
        """Keep the owner of memory until the host has waited for what is enqueued now, which may read it."""
        self._kept.append((self.num_marks, owner))


class SecondStream:
    """Graphs beside the stream of a device, each behind what that holds when the graph is launched."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._is_busy = False
        """Whether it holds graphs that the stream does not wait for."""

    def launch(self, graph: Opaque) -> None:
        self._driver.fork()
        self._driver.launch(graph, beside=True)
        self._is_busy = True

    def join(self) -> None:
        if self._is_busy:
            self._driver.join()
            self._is_busy = False


class Cuda:
    """Memory of one CUDA device. Uploads and downloads go through pinned buffers of the host, made once per array.

    An upload is under way until the device has been waited for. So an array that is uploaded several times before the
    next wait has as many pinned buffers.
    """

    name = "cuda"
    max_frames_per_call: int | None = None
    supports_graph_capture = True
    requires_graphs = False
    records_stages = True

    def __init__(self, driver: Driver | None = None) -> None:
        self.driver: Driver = driver if driver is not None else CudaCore()
        self._pinned: dict[tuple[int, int], list[PinnedBuffer]] = {}
        """(address, bytes) of device memory -> its pinned buffers; the first one is also that of downloads."""
        self._progress = Progress()
        self.keep = self._progress.keep
        self.index, self.stream = self.driver.index, self.driver.stream
        self.multiprocessors = self.driver.multiprocessors
        self._second = SecondStream(self.driver)
        self.join = self._second.join
        self.captures, self.lock, self.workers = 0, DeviceLock(self.driver.make_current), Workers()

    @property
    def kernel_driver(self) -> CubinDriver | None:
        return self.driver.kernel_driver

    @property
    def capability(self) -> int:
        """Compute capability without the dot: 89 is sm_89."""
        return self.driver.capability

    def empty(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        size = prod(shape) * np.dtype(dtype).itemsize
        ptr, owner = self.driver.allocate(size)
        owner = Allocation(owner)
        weakref.finalize(owner, self._free_staging, ptr, max(size, 1)).atexit = False
        return DeviceArray(ptr, tuple(shape), dtype, owner)

    def _free_staging(self, ptr: int, size: int) -> None:
        """Free the staging buffers of device memory that has been freed; the garbage collector calls this anywhere."""
        for key in list(self._pinned):
            if ptr <= key[0] < ptr + size:
                self._pinned.pop(key, None)

    def constant(self, host: np.ndarray) -> DeviceArray:
        array = self.empty(host.shape, host.dtype.name)
        pinned, _owner = pinned_like(array, self.driver)
        pinned[...] = host
        self.upload(pinned, array)
        self.wait()  # the pinned memory is freed with `_owner`
        return array

    def staging(self, array: DeviceArray) -> np.ndarray:
        buffers = self._pinned.setdefault((array.ptr, array.nbytes), [])
        free = next((buffer for buffer in buffers if buffer.num_marks < self._progress.num_passed), None)
        if free is None:
            buffers.append(free := PinnedBuffer(*pinned_like(array, self.driver)))
        free.num_marks = self._progress.num_marks
        return free.host.view(array.dtype).reshape(array.shape)

    def wait(self) -> None:
        """Wait for all enqueued work."""
        self.driver.synchronize()
        self._progress.reach(self._progress.add())

    def upload(self, host: np.ndarray, to: DeviceArray) -> None:
        self.driver.copy(to.ptr, host.ctypes.data, to.nbytes)

    def download(self, array: DeviceArray) -> np.ndarray:
        return self.download_all([array])[0]

    def download_all(self, arrays: Sequence[DeviceArray]) -> list[np.ndarray]:
        hosts = [self.staging(array) for array in arrays]
        for host, array in zip(hosts, arrays, strict=True):
            self.driver.copy(host.ctypes.data, array.ptr, array.nbytes)
        self.wait()
        return hosts

    def begin_download(self, array: DeviceArray) -> Callable[[], np.ndarray]:
        host = self.staging(array)
        self.driver.copy(host.ctypes.data, array.ptr, array.nbytes)
        event = self.driver.record_event()
        mark = self._progress.add()

        def finish() -> np.ndarray:
            self.driver.wait_event(event)
            self._progress.reach(mark)
            return host

        return finish

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        self.driver.copy(to.ptr, source.ptr, to.nbytes)

    def capture(self, work: Callable[[], None], beside: bool = False) -> Callable[[], None] | None:
        """See `Device.capture`. A failure (a library that waits or allocates) is logged and ends all attempts; where
        graphs are required it raises BackendError."""
        builder, graph = self.driver.begin_capture(), None
        failure: Exception | None = None
        try:
            work()
        except Exception as error:  # each library has its own types
            failure = error
        try:
            graph = self.driver.end_capture(builder, keep=failure is None)
        except Exception as error:  # an invalidated capture ends with an error of its own
            if failure is not None:
                log.info("the capture ended with: %s", summarize(error))
            failure = failure or error
        if failure is not None and self.requires_graphs:
            raise BackendError(f"no CUDA graph: {summarize(failure)}; use --graphs auto or off") from None
        if failure is not None:
            log.warning("no CUDA graph: %s; frames are launched stage by stage", summarize(failure))
            self.supports_graph_capture = False
            return None
        self.captures += 1
        if beside:
            return lambda: self._second.launch(graph)
        return lambda: self.driver.launch(graph)

    def wait_for(self, stream: int) -> None:
        """Run everything enqueued from now on after the work that another library's `stream` holds now."""
        self.driver.wait_for(stream)


def pinned_like(array: DeviceArray, driver: Driver) -> tuple[np.ndarray, Opaque]:
    """Allocate pinned host memory of the same shape and type; returns it and its owner."""
    ptr, owner = driver.pinned(array.nbytes)
    memory = (ctypes.c_uint8 * max(array.nbytes, 1)).from_address(ptr)
    return np.frombuffer(memoryview(memory), np.uint8, array.nbytes).view(array.dtype).reshape(array.shape), owner
