"""Where arrays live. The schedule in `models/` asks a device for memory and never looks at the values in it.

`Cpu` hands out numpy arrays. `Cuda` hands out `DeviceArray`s and enqueues every copy on one stream; the few driver calls
that it makes go through `Driver`, so that a fake driver on host memory can count them and run the same schedule anywhere.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from ..errors import BackendError, summarize
from .array import DeviceArray

log = logging.getLogger("runtime")


class Driver(Protocol):
    """The driver calls that `Cuda` makes. Pointers are integers; `owner` keeps the memory alive."""

    stream: int
    capability: int
    """Compute capability without the dot: 89 is sm_89."""
    multiprocessors: int
    kernel_driver: Any
    """`runtime.device.cubin.CubinDriver`; None for the driver library of the machine."""

    def allocate(self, size: int) -> tuple[int, Any]: ...

    def pinned(self, size: int) -> tuple[int, Any]: ...

    def copy(self, to: int, source: int, size: int) -> None: ...

    def synchronize(self) -> None: ...

    def wait_for(self, stream: int) -> None: ...

    def begin_capture(self) -> Any: ...

    def end_capture(self, recording: Any, keep: bool) -> Any: ...

    def launch(self, graph: Any) -> None: ...


class CudaCore:
    """`Driver` on cuda.core: one device, one stream."""

    kernel_driver = None

    def __init__(self, index: int = 0) -> None:
        try:
            from cuda.core import Buffer, LegacyPinnedMemoryResource
            from cuda.core import Device as CudaDevice
        except ImportError:
            raise BackendError("a CUDA backend needs cuda-core: pip install 'samwise-runtime[gpu]'") from None
        self._buffer = Buffer
        try:
            self._device = CudaDevice(index)
            self._device.set_current()
            self._stream = self._device.create_stream()
            self._pinned = LegacyPinnedMemoryResource()
        except Exception as error:  # the driver's own error types exist only where a driver does
            raise BackendError(f"no CUDA device {index} here ({summarize(error)}); use --backend ort") from None
        self.stream = int(self._stream.handle)
        capability = self._device.compute_capability
        self.capability = 10 * capability.major + capability.minor
        self.multiprocessors = int(self._device.properties.multiprocessor_count)

    def allocate(self, size: int) -> tuple[int, Any]:
        buffer = self._device.allocate(max(size, 1), stream=self._stream)
        self._stream.sync()  # the allocation is ordered on the stream; other libraries use the pointer at once
        return int(buffer.handle), buffer

    def pinned(self, size: int) -> tuple[int, Any]:
        buffer = self._pinned.allocate(max(size, 1), stream=self._stream)
        return int(buffer.handle), buffer

    def copy(self, to: int, source: int, size: int) -> None:
        target = self._buffer.from_handle(to, size)
        target.copy_from(self._buffer.from_handle(source, size), stream=self._stream)

    def synchronize(self) -> None:
        self._stream.sync()

    def wait_for(self, stream: int) -> None:
        from cuda.core import Stream

        # 1 and 2 are the legacy and the per-thread default stream, as in __cuda_array_interface__ and DLPack
        self._stream.wait(Stream.from_handle(stream))

    def begin_capture(self) -> Any:
        return self._stream.create_graph_builder().begin_building("relaxed")

    def end_capture(self, recording: Any, keep: bool) -> Any:
        recording.end_building()
        graph = recording.complete() if keep else None
        recording.close()
        return graph

    def launch(self, graph: Any) -> None:
        graph.launch(self._stream)


class Allocation:
    """What every view of one allocation holds on to: the driver's own object, which may not be weakly referenced."""

    __slots__ = ("__weakref__", "memory")

    def __init__(self, memory: Any) -> None:
        self.memory = memory


class Cuda:
    """Memory of one CUDA device. Uploads and downloads go through pinned twins that are made once per array."""

    name = "cuda"
    max_frames_per_call: int | None = None
    supports_graph_capture = True

    def __init__(self, driver: Driver | None = None) -> None:
        self.driver = driver if driver is not None else CudaCore()
        self._twins: dict[tuple[int, int], tuple[np.ndarray, Any]] = {}
        self.captures = 0
        """Recordings made so far; memory that a backend may have handed to one must not be given back."""

    @property
    def stream(self) -> int:
        """The stream's handle, for backends that enqueue on it."""
        return self.driver.stream

    @property
    def kernel_driver(self) -> Any:
        return self.driver.kernel_driver

    @property
    def capability(self) -> int:
        """Compute capability without the dot: 89 is sm_89."""
        return self.driver.capability

    @property
    def multiprocessors(self) -> int:
        return self.driver.multiprocessors

    def empty(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        size = prod(shape) * np.dtype(dtype).itemsize
        ptr, owner = self.driver.allocate(size)
        owner = Allocation(owner)
        weakref.finalize(owner, self._forget, ptr, max(size, 1)).atexit = False
        return DeviceArray(ptr, tuple(shape), dtype, owner)

    def _forget(self, ptr: int, size: int) -> None:
        """Give back the pinned twins of memory that is gone."""
        for key in [key for key in self._twins if ptr <= key[0] < ptr + size]:
            del self._twins[key]

    def constant(self, host: np.ndarray) -> DeviceArray:
        array = self.empty(host.shape, host.dtype.name)
        twin, ptr, _owner = self._host(array)
        twin[...] = host
        self.driver.copy(array.ptr, ptr, array.nbytes)
        self.driver.synchronize()  # the twin goes away with `owner`
        return array

    def staging(self, array: DeviceArray) -> np.ndarray:
        key = (array.ptr, array.nbytes)
        if key not in self._twins:
            twin, _, owner = self._host(array)
            self._twins[key] = (twin, owner)
        return self._twins[key][0]

    def upload(self, host: np.ndarray, to: DeviceArray) -> None:
        self.driver.copy(to.ptr, host.ctypes.data, to.nbytes)

    def download(self, array: DeviceArray) -> np.ndarray:
        twin = self.staging(array)
        self.driver.copy(twin.ctypes.data, array.ptr, array.nbytes)
        self.driver.synchronize()
        return twin

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        self.driver.copy(to.ptr, source.ptr, to.nbytes)

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """See `Device.capture`. What cannot be recorded (a library that waits or allocates) is said once, in the log."""
        recording = self.driver.begin_capture()
        try:
            work()
        except Exception as error:  # each library has its own types
            self._abandon(recording, error)
            return None
        try:
            graph = self.driver.end_capture(recording, keep=True)
        except Exception as error:
            log.warning("no CUDA graph: %s; frames are launched stage by stage", summarize(error))
            return None
        self.captures += 1
        return lambda: self.driver.launch(graph)

    def wait_for(self, stream: int) -> None:
        """What is enqueued from now on runs after what `stream` of another library holds now."""
        self.driver.wait_for(stream)

    def _abandon(self, recording: Any, error: Exception) -> None:
        log.warning("no CUDA graph: %s; frames are launched stage by stage", summarize(error))
        try:
            self.driver.end_capture(recording, keep=False)
        except Exception as second:  # an invalidated recording ends with an error of its own
            log.info("the recording ended with: %s", summarize(second))

    def _host(self, array: DeviceArray) -> tuple[np.ndarray, int, Any]:
        ptr, owner = self.driver.pinned(array.nbytes)
        memory = (np.ctypeslib.ctypes.c_uint8 * max(array.nbytes, 1)).from_address(ptr)
        twin = np.frombuffer(memory, np.uint8, array.nbytes).view(array.dtype).reshape(array.shape)
        return twin, ptr, owner
