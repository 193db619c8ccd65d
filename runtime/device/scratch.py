"""Scratch memory of stages: named arrays, buffers that grow on demand, and the block that results are read from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import numpy as np

from ..bundle.manifest import StageSpec, TensorSpec
from ..errors import BundleError
from .base import Array, Device


class GrowableBuffers:
    """Device memory by name, reused by every call and replaced by a larger block when a call needs more.

    Nothing survives from one user of a name to the next. A block that a CUDA graph may have captured is kept alive.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._blocks: dict[str, Array] = {}
        self._replaced: list[Array] = []

    def reserve(self, name: str, nbytes: int) -> Array:
        """Return the whole block `name`, of at least `nbytes` bytes (uint8)."""
        block = self._blocks.get(name)
        if block is None or block.nbytes < nbytes:
            if block is not None and self._device.captures:
                self._replaced.append(block)
            block = self._blocks[name] = self._device.empty((max(nbytes, 1),), "uint8")
        return block

    def take(self, name: str, shape: Sequence[int], dtype: str) -> Array:
        """Return block `name` as an array of this shape; its contents are undefined."""
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        return self.reserve(name, nbytes)[:nbytes].view(dtype).reshape(*shape)


class ScratchBuffers:
    """One array per stage output, allocated once for the largest sizes; `view` cuts it to the size of a call.

    Two stages that write a tensor of the same name share its array, the larger one if the first dimensions differ.
    """

    def __init__(self, device: Device, stages: Mapping[str, StageSpec], limits: Mapping[str, int]) -> None:
        self._device, self._limits = device, limits
        self._arrays: dict[str, Array] = {}
        for spec in stages.values():
            for tensor in spec.outputs:
                self.add(tensor.name, tensor)

    def add(self, name: str, tensor: TensorSpec, **limits: int) -> None:
        """Allocate `name` with the type and shape of `tensor`."""
        if any(isinstance(d, str) for d in tensor.shape[1:]):
            raise BundleError(f"{tensor.name}: only the first dimension of an output may be a symbol")
        shape = tensor.resolve({**self._limits, **limits})
        if name not in self._arrays:
            self._arrays[name] = self._device.empty(shape, tensor.dtype)
        elif tuple(self._arrays[name].shape[1:]) != shape[1:]:
            raise BundleError(f"{name}: two stages give it different shapes")
        elif self._arrays[name].shape[0] < shape[0]:
            self._arrays[name] = self._device.empty(shape, tensor.dtype)

    def view(self, name: str, size: int | None = None) -> Array:
        """Return the array, or its first `size` entries."""
        array = self._arrays[name]
        return array if size is None else array[:size]

    def gather(self, name: str, arrays: Sequence[Array], static: bool = False) -> Array:
        """Return `arrays` stacked: a view of a single one, else (or if `static`) a copy into the buffer `name`."""
        if len(arrays) == 1 and not static:
            return arrays[0][None]
        out = self.view(name, len(arrays))
        for source, to in zip(arrays, out, strict=True):
            self._device.copy(source, to)
        return out


class Field(NamedTuple):
    """Place of one array inside a block: byte range, shape, type."""

    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def of(self, block: Array) -> Array:
        """Return this field of a block of bytes."""
        return block[self.start : self.stop].view(self.dtype).reshape(*self.shape)


ALIGNMENT = 256
"""Bytes; the alignment of CUDA allocations."""


def aligned(size: int) -> int:
    """Return `size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def side_by_side(arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> tuple[dict[str, Field], int]:
    """Lay arrays, given by shape and type, out in one block, each aligned; return their places and its bytes."""
    sizes = [prod(shape) * dtype.itemsize for shape, dtype in arrays.values()]
    *starts, total = accumulate(map(aligned, sizes), initial=0)
    fields = {
        name: Field(start, start + size, shape, dtype)
        for (name, (shape, dtype)), start, size in zip(arrays.items(), starts, sizes, strict=True)
    }
    return fields, total


class OutputBlock:
    """Stage outputs side by side, as in a `ReadbackBuffer`, of sizes that differ from call to call."""

    def __init__(self, device: Device) -> None:
        self._device, self._blocks = device, GrowableBuffers(device)
        self._fields: dict[str, Field] = {}
        self._total = 0
        self._host: np.ndarray | None = None

    def reserve(self, tensors: Iterable[TensorSpec], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Return arrays to bind as outputs, instead of those before."""
        self._host = None
        self._fields, self._total = side_by_side({t.name: (t.resolve(sizes), np.dtype(t.dtype)) for t in tensors})
        block = self._blocks.reserve("outputs", self._total)
        return {name: field.of(block) for name, field in self._fields.items()}

    def read(self, *others: OutputBlock) -> dict[str, np.ndarray]:
        """Wait once and return host views of the arrays, valid until the next `reserve`. `others` are read with that
        wait; their own `read` does not wait again."""
        blocks = [block for block in (self, *others) if block._host is None]
        arrays = [block._blocks.reserve("outputs", block._total)[: block._total] for block in blocks]
        for block, host in zip(blocks, self._device.download_all(arrays) if blocks else [], strict=True):
            block._host = host
        assert self._host is not None
        return {name: field.of(self._host) for name, field in self._fields.items()}


class ReadbackBuffer:
    """Stage outputs side by side in one block, so that one copy and one wait bring them to the host.

    Bind `arrays[name]` as stage outputs, then `read`. Fields named in `optional` lie last, so that a read without them
    copies less.
    """

    def __init__(
        self, device: Device, tensors: Iterable[TensorSpec], objects: int, optional: Collection[str] = ()
    ) -> None:
        self._device = device
        ordered = sorted(tensors, key=lambda tensor: tensor.name in optional)
        shapes = {t.name: (t.resolve({"objects": objects}), np.dtype(t.dtype)) for t in ordered}
        self._fields, total = side_by_side(shapes)
        self._block = device.empty((total,), "uint8")
        self.arrays: dict[str, Array] = {name: field.of(self._block) for name, field in self._fields.items()}

    def read(self, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """Copy these fields (None: all) to the host, with one wait; see `begin_read`."""
        return self.begin_read(names)()

    def begin_read(self, names: Iterable[str] | None = None) -> Callable[[], dict[str, np.ndarray]]:
        """Enqueue a copy of these fields (None: all) to the host; return what waits once and gives host views, valid
        until it is called again."""
        fields = self._fields if names is None else {name: self._fields[name] for name in names}
        finish = self._device.begin_download(self._block[: aligned(max(field.stop for field in fields.values()))])

        def read() -> dict[str, np.ndarray]:
            host = finish()
            return {name: field.of(host) for name, field in fields.items()}

        return read
