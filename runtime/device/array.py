"""Arrays in device memory: a pointer, a shape, a dtype, and contiguous views.

Views with gaps do not exist, so every array can be passed to a stage as one pointer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


class DeviceArray:
    """C-contiguous memory at `ptr`. Exposes `__cuda_array_interface__` (PyCUDA, CuPy, torch, Numba read it without a
    copy).

    Indexing takes integers, `None` and slices of step 1, and raises IndexError where the result would have gaps.
    """

    __slots__ = ("__weakref__", "dtype", "owner", "ptr", "shape")

    def __init__(self, ptr: int, shape: tuple[int, ...], dtype: DTypeLike, owner: object = None) -> None:
        self.ptr, self.shape, self.owner = ptr, tuple(shape), owner
        self.dtype: np.dtype[Any] = np.dtype(dtype)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * int(self.dtype.itemsize)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.ptr, False),
            "version": 3,
            "strides": None,
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[DeviceArray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> DeviceArray:
        keys = list(key if isinstance(key, tuple) else (key,))
        rest, shape, offset = list(self.shape), [], 0
        for k in keys:
            if k is None:
                shape.append(1)
                continue
            if not rest:
                raise IndexError(f"too many indices for shape {self.shape}")
            length = rest.pop(0)
            stride = prod(rest)
            if isinstance(k, slice):
                start, stop, step = k.indices(length)
                if step != 1:
                    raise IndexError("only slices of step 1")
                count = max(0, stop - start)
                if count != length and any(d != 1 for d in shape):
                    raise IndexError(f"{key} of shape {self.shape} has gaps")
                shape.append(count)
                offset += start * stride
            else:
                index = int(k) + (length if k < 0 else 0)
                if not 0 <= index < length:
                    raise IndexError(f"index {k} is outside 0..{length - 1}")
                if any(d != 1 for d in shape):
                    raise IndexError(f"{key} of shape {self.shape} has gaps")
                offset += index * stride
        return DeviceArray(self.ptr + offset * self.dtype.itemsize, (*shape, *rest), self.dtype, self.owner)

    def reshape(self, *shape: int) -> DeviceArray:
        """Return a view of another shape; one dimension may be -1."""
        if -1 in shape:
            known = prod(d for d in shape if d != -1)
            shape = tuple(self.size // known if d == -1 else d for d in shape)
        if prod(shape) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {shape}")
        return DeviceArray(self.ptr, shape, self.dtype, self.owner)

    def view(self, dtype: DTypeLike) -> DeviceArray:
        """Return a view of the same bytes as another type; one-dimensional arrays only."""
        (length,) = self.shape
        dtype = np.dtype(dtype)
        return DeviceArray(self.ptr, (length * self.dtype.itemsize // dtype.itemsize,), dtype, self.owner)


def merged(arrays: Sequence[Any]) -> Iterator[tuple[int, int, Any]]:
    """Yield (first, stop, array) of runs of equally large arrays that lie one behind the other in one allocation, each
    run as one array (stop - first, ...). Arrays of the host are runs of one."""
    first = 0
    for stop in range(1, len(arrays) + 1):
        if stop < len(arrays) and _is_behind(arrays[stop], arrays[stop - 1]):
            continue
        start = arrays[first]
        if isinstance(start, DeviceArray):
            yield first, stop, DeviceArray(start.ptr, (stop - first, *start.shape), start.dtype, start.owner)
        else:
            yield first, stop, start[None]
        first = stop


def _is_behind(array: Any, other: Any) -> bool:
    if not isinstance(array, DeviceArray) or not isinstance(other, DeviceArray):
        return False
    return array.owner is other.owner is not None and array.ptr == other.ptr + other.nbytes
