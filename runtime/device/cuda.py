"""Memory, copies and graphs of one CUDA device, enqueued on one stream; graphs also on a second one beside it.

The few driver calls go through the `Driver` protocol, so that a fake driver on host memory can count them and run the
same schedule without a GPU.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from .. import versions
from ..errors import BackendError, summarize
from .array import DeviceArray
from .cubin import CubinDriver
from .lock import DeviceLock
from .workers import Workers

if TYPE_CHECKING:
    from cuda.core.graph import Graph, GraphBuilder

log = logging.getLogger("runtime")


Opaque: TypeAlias = Any
"""An object of the driver library: a buffer, a graph builder, a graph."""


class Driver(Protocol):
    """The driver calls that `Cuda` makes. Pointers are integers; an allocation lives as long as its object."""

    stream: int
    capability: int
    """Compute capability without the dot: 89 is sm_89."""
    multiprocessors: int
    kernel_driver: CubinDriver | None
    """None for the driver library of the machine."""

    def make_current(self) -> None: ...

    def allocate(self, size: int) -> tuple[int, Opaque]: ...

    def pinned(self, size: int) -> tuple[int, Opaque]: ...

    def copy(self, to: int, source: int, size: int) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self) -> Opaque: ...

    def wait_event(self, event: Opaque) -> None: ...

    def wait_for(self, stream: int) -> None: ...

    def begin_capture(self) -> Opaque: ...

    def end_capture(self, builder: Opaque, keep: bool) -> Opaque | None: ...

    def launch(self, graph: Opaque, beside: bool = False) -> None:
        """Launch on the stream, or on the second one."""

    def fork(self) -> None:
        """Let the second stream wait for what the stream holds now."""

    def join(self) -> None:
        """Let the stream wait for what the second one holds now."""


class CudaCore:
    """`Driver` on cuda.core: one device, one stream, and a second one for graphs."""

    kernel_driver: CubinDriver | None = None

    def __init__(self, index: int = 0) -> None:
        try:
            from cuda.core import Buffer, LegacyPinnedMemoryResource
            from cuda.core import Device as CudaDevice
        except ImportError as error:
            raise BackendError(versions.cuda_core_remedy(summarize(error))) from None
        self._buffer = Buffer
        try:
            self._device = CudaDevice(index)
            self._device.set_current()
            self._stream, self._second = self._device.create_stream(), self._device.create_stream()
            self._pinned = LegacyPinnedMemoryResource()
        except Exception as error:  # the driver's own error types exist only where a driver does
            raise BackendError(f"no CUDA device {index} here ({summarize(error)}); use --backend ort") from None
        self.stream = int(self._stream.handle)
        capability = self._device.compute_capability
        self.capability = 10 * capability.major + capability.minor
        self.multiprocessors = int(self._device.properties.multiprocessor_count)

    def make_current(self) -> None:
        self._device.set_current()

    def allocate(self, size: int) -> tuple[int, Opaque]:
        buffer = self._device.allocate(max(size, 1), stream=self._stream)
        self._stream.sync()  # the allocation is ordered on the stream; other libraries use the pointer at once
        return int(buffer.handle), buffer

    def pinned(self, size: int) -> tuple[int, Opaque]:
        buffer = self._pinned.allocate(max(size, 1), stream=self._stream)
        return int(buffer.handle), buffer

    def copy(self, to: int, source: int, size: int) -> None:
        target = self._buffer.from_handle(to, size)
        target.copy_from(self._buffer.from_handle(source, size), stream=self._stream)

    def synchronize(self) -> None:
        self._stream.sync()

    def record_event(self) -> Opaque:
        return self._stream.record()

    def wait_event(self, event: Opaque) -> None:
        event.sync()

    def wait_for(self, stream: int) -> None:
        from cuda.core import Stream

        # 1 and 2 are the legacy and the per-thread default stream, as in __cuda_array_interface__ and DLPack
        self._stream.wait(Stream.from_handle(stream))

    def begin_capture(self) -> GraphBuilder:
        return self._stream.create_graph_builder().begin_building("relaxed")

    def end_capture(self, builder: GraphBuilder, keep: bool) -> Graph | None:
        builder.end_building()
        graph = builder.complete() if keep else None
        builder.close()
        return graph

    def launch(self, graph: Graph, beside: bool = False) -> None:
        graph.launch(self._second if beside else self._stream)

    def fork(self) -> None:
        self._second.wait(self._stream)

    def join(self) -> None:
        self._stream.wait(self._second)


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
        self._num_marks = self._num_passed = 0
        """Marks in the stream, which are events and waits; those that the host has waited for."""
        self.stream = self.driver.stream
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
        self._wait()  # the pinned memory is freed with `_owner`
        return array

    def staging(self, array: DeviceArray) -> np.ndarray:
        buffers = self._pinned.setdefault((array.ptr, array.nbytes), [])
        free = next((buffer for buffer in buffers if buffer.num_marks < self._num_passed), None)
        if free is None:
            buffers.append(free := PinnedBuffer(*pinned_like(array, self.driver)))
        free.num_marks = self._num_marks
        return free.host.view(array.dtype).reshape(array.shape)

    def _wait(self) -> None:
        self.driver.synchronize()
        self._num_marks += 1
        self._num_passed = self._num_marks

    def upload(self, host: np.ndarray, to: DeviceArray) -> None:
        self.driver.copy(to.ptr, host.ctypes.data, to.nbytes)

    def download(self, array: DeviceArray) -> np.ndarray:
        return self.download_all([array])[0]

    def download_all(self, arrays: Sequence[DeviceArray]) -> list[np.ndarray]:
        hosts = [self.staging(array) for array in arrays]
        for host, array in zip(hosts, arrays, strict=True):
            self.driver.copy(host.ctypes.data, array.ptr, array.nbytes)
        self._wait()
        return hosts

    def begin_download(self, array: DeviceArray) -> Callable[[], np.ndarray]:
        host = self.staging(array)
        self.driver.copy(host.ctypes.data, array.ptr, array.nbytes)
        event = self.driver.record_event()
        self._num_marks += 1
        mark = self._num_marks

        def finish() -> np.ndarray:
            self.driver.wait_event(event)
            self._num_passed = max(self._num_passed, mark)
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
