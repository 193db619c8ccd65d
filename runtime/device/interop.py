"""Zero-copy access to GPU arrays of other libraries: `__cuda_array_interface__` and DLPack."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import VideoError, summarize
from .array import DeviceArray
from .cuda import Cuda

CUDA, CUDA_MANAGED = 2, 13
"""DLPack device types that a kernel can read."""
CODES = {0: "int", 1: "uint", 2: "float"}
"""DLPack's type codes."""


def is_cuda_array(frame: object) -> bool:
    """Return whether an array is in GPU memory."""
    if isinstance(frame, (np.ndarray, list, tuple)):
        return False
    if isinstance(frame, DeviceArray):
        return True
    if hasattr(frame, "__dlpack_device__"):  # a torch tensor on the CPU has a __cuda_array_interface__ that raises
        return bool(frame.__dlpack_device__()[0] in (CUDA, CUDA_MANAGED))
    return hasattr(frame, "__cuda_array_interface__")


def as_device_array(frame: Any, device: Cuda) -> DeviceArray:
    """Return the same memory as a `DeviceArray`, safe to read in the order of the device's stream.

    Raises VideoError for an array with gaps, of a type that numpy lacks, on another GPU, or that its library refuses to
    export.
    """
    if isinstance(frame, DeviceArray):
        return frame
    # DLPack first: the interface of torch and of version 2 names no stream that could be waited for
    return _from_dlpack(frame, device) if hasattr(frame, "__dlpack_device__") else _from_interface(frame, device)


@contextmanager
def _export(frame: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each library has its own types
        raise VideoError(f"a {type(frame).__name__} that its library does not export ({summarize(error)})") from None


def _from_interface(frame: Any, device: Cuda) -> DeviceArray:
    """Wrap https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, version 2 and 3."""
    with _export(frame):
        found = frame.__cuda_array_interface__
    shape, dtype = tuple(found["shape"]), np.dtype(found["typestr"])
    if found.get("mask") is not None:
        raise VideoError("a masked array; give the pixels that are masked a colour")
    _check_strides(shape, found.get("strides"), dtype.itemsize)
    stream = found.get("stream")
    if stream is not None:  # version 3: the stream of the work that fills the array; None: the work is done
        device.wait_for(int(stream))
    return DeviceArray(int(found["data"][0]), shape, dtype, frame)


class _Tensor(ctypes.Structure):
    """`DLTensor` of dlpack.h, the first member of `DLManagedTensor`."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


def _from_dlpack(frame: Any, device: Cuda) -> DeviceArray:
    """Import a DLPack capsule; its producer makes the stream wait for the array. The owner releases it."""
    index = frame.__dlpack_device__()[1]
    if index != device.index:
        raise VideoError(f"an array on GPU {index}, and the engine is on GPU {device.index}; copy it there")
    with _export(frame):
        capsule = frame.__dlpack__(stream=device.stream)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    if tensor.code not in CODES or tensor.lanes != 1:
        raise VideoError(f"an array of DLPack type {tensor.code}/{tensor.bits}x{tensor.lanes}; give uint8 RGB")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    dtype = np.dtype(f"{CODES[tensor.code]}{tensor.bits}")
    if tensor.strides:
        _check_strides(shape, [tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim)], dtype.itemsize)
    return DeviceArray(tensor.data + tensor.byte_offset, shape, dtype, (frame, capsule))


def _check_strides(shape: tuple[int, ...], strides: Sequence[int] | None, itemsize: int) -> None:
    if strides is None:
        return
    expected = itemsize
    for size, stride in reversed(list(zip(shape, strides, strict=True))):
        if size != 1 and stride != expected:
            raise VideoError(f"an array {shape} with strides {tuple(strides)} has gaps; make it contiguous first")
        expected *= size
