"""Scratch arrays that stages hand to each other, allocated when the bundle is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..bundle.manifest import StageSpec, TensorSpec
from ..errors import BundleError
from .base import Device


class Workspace:
    """One array per stage output, as large as the bounds allow; `view` cuts it to the sizes of this call.

    Two stages that write a tensor of the same name share its array.
    """

    def __init__(self, device: Device, stages: Mapping[str, StageSpec], limits: Mapping[str, int]) -> None:
        self._device, self._limits = device, limits
        self._arrays: dict[str, Any] = {}
        for spec in stages.values():
            for tensor in spec.outputs:
                self.add(tensor.name, tensor)

    def add(self, name: str, tensor: TensorSpec, **limits: int) -> None:
        """Allocate `name` with the type and shape of `tensor`."""
        if any(isinstance(d, str) for d in tensor.shape[1:]):
            raise BundleError(f"{tensor.name}: only the first dimension of an output may be a symbol")
        shape = tensor.resolve({**self._limits, **limits})
        if name in self._arrays and tuple(self._arrays[name].shape) != shape:
            raise BundleError(f"{name}: two stages give it different shapes")
        if name not in self._arrays:
            self._arrays[name] = self._device.empty(shape, tensor.dtype)

    def view(self, name: str, size: int | None = None) -> Any:
        """The array, or its first `size` entries."""
        array = self._arrays[name]
        return array if size is None else array[:size]

    def gather(self, name: str, parts: list[Any], fixed: bool = False) -> Any:
        """`parts` as one array (len(parts), ...): a view of a single part, else (or if `fixed`) a copy into `name`."""
        if len(parts) == 1 and not fixed:
            return parts[0][None]
        out = self.view(name, len(parts))
        for source, to in zip(parts, out):
            self._device.copy(source, to)
        return out


class Packed:
    """Several outputs side by side in one block, so that one copy brings all of them to the host.

    Bind `arrays[name]`, then `read()` waits once and returns them on the host; what stands last may be left out.
    """

    ALIGNMENT = 256  # what CUDA allocations have and vectorised loads like

    def __init__(self, device: Device, tensors: Sequence[TensorSpec], objects: int) -> None:
        self._device, self._layout, size = device, [], 0
        for tensor in tensors:
            shape, dtype = tensor.resolve({"objects": objects}), np.dtype(tensor.dtype)
            self._layout.append((tensor.name, size, shape, dtype))
            size += -(-prod(shape) * dtype.itemsize // self.ALIGNMENT) * self.ALIGNMENT
        self._block = device.empty((size,), "uint8")
        self.arrays = self._views(self._block, self._layout)

    @staticmethod
    def _views(block: Any, layout: Sequence[tuple[str, int, tuple[int, ...], np.dtype]]) -> dict[str, Any]:
        return {
            name: block[at : at + prod(shape) * dtype.itemsize].view(dtype).reshape(*shape)
            for name, at, shape, dtype in layout
        }

    def read(self, without_last: bool = False) -> dict[str, np.ndarray]:
        """Host views by name, valid until the next `read`."""
        layout = self._layout[:-1] if without_last else self._layout
        block = self._block[: self._layout[-1][1]] if without_last else self._block
        return self._views(self._device.download(block), layout)
