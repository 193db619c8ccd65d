"""Driver calls of one CUDA device, and their implementation on cuda.core.

`Cuda` makes them through the `Driver` protocol, so that a fake driver on host memory can count them and run the same
schedule without a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .. import versions
from ..errors import BackendError, summarize
from .cubin import CubinDriver

if TYPE_CHECKING:
    from cuda.core.graph import Graph, GraphBuilder

Opaque: TypeAlias = Any
"""An object of the driver library: a buffer, a graph builder, a graph."""


class Driver(Protocol):
    """The driver calls that `Cuda` makes. Pointers are integers; an allocation lives as long as its object."""

    index: int
    """Number of the device."""
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
        self.index, self.stream = index, int(self._stream.handle)
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
