"""Loader and launcher of a bundle's compiled kernels through the CUDA driver, without Triton or PyTorch.

A bundle's `kernels/index.json` (written by `python -m export.kernels`) lists one entry per kernel, set of constants and
compute capability: file, symbol, types of the arguments, threads, shared memory. A launch names kernel and constants;
`Kernels.bind` finds the entry and packs the arguments once; `BoundLaunches.run` enqueues them any number of times.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from ..errors import BackendError, BundleError

FOLDER, INDEX = "kernels", "index.json"
FORMAT = 1
SHARED_ATTRIBUTE = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: above 48 KB a kernel must ask."""
TYPES = {"fp16": "float16", "fp32": "float32", "fp64": "float64", "i32": "int32", "i64": "int64", "u8": "uint8"}
"""Element types of pointers -> names of a manifest's types."""
MAX_BOUND_LAUNCHES = 512
"""Most keys of launches that are kept packed."""
SCALARS: Mapping[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}


class Launch(Protocol):
    """One launch of a plan, as `kernels/plan.py` describes it."""

    kernel: str
    grid: tuple[int, int, int]
    arguments: Sequence[Any]
    constants: Mapping[str, Any]


Function: TypeAlias = Any
"""Handle of a loaded kernel, opaque."""


class CubinDriver(Protocol):
    """The driver calls that kernels need."""

    def load(self, cubin: bytes, symbol: str, shared: int) -> Function: ...

    def launch(
        self, function: Function, grid: Sequence[int], threads: int, shared: int, stream: int, params: Any
    ) -> None: ...


class CudaDriver:
    """`CubinDriver` on the driver library that comes with the GPU driver. A context must be current."""

    def __init__(self) -> None:
        for name in ("libcuda.so.1", "nvcuda.dll"):
            try:
                self._library = ctypes.CDLL(name)
                return
            except OSError:
                continue
        raise BackendError("no CUDA driver library on this machine; use --backend ort")

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            raise BackendError(
                f"{name} failed: {(text.value or b'unknown').decode()} ({code}); export the kernels again"
            )

    def load(self, cubin: bytes, symbol: str, shared: int) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), cubin)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, symbol.encode())
        if shared > 48 << 10:
            self._call("cuFuncSetAttribute", function, ctypes.c_int(SHARED_ATTRIBUTE), ctypes.c_int(shared))
        return function

    def launch(
        self, function: Function, grid: Sequence[int], threads: int, shared: int, stream: int, params: Any
    ) -> None:
        sizes = [ctypes.c_uint(n) for n in (*grid, threads, 1, 1, shared)]
        self._call("cuLaunchKernel", function, *sizes, ctypes.c_void_p(stream), params, None)


@dataclass(frozen=True, slots=True)
class Entry:
    """One compiled kernel."""

    kernel: str
    capability: int
    constants: Mapping[str, Any]
    file: str
    symbol: str
    signature: tuple[str, ...]
    extra_pointers: int
    """Pointers that the compiler appends: of global scratch, and of the profiler's, which is null."""
    threads: int
    shared: int
    scratch: int = 0
    """Bytes of global scratch of one program: a kernel that makes tensor descriptors writes them there."""


@dataclass(frozen=True, slots=True)
class BoundLaunches:
    """Launches with packed arguments; `run` allocates nothing. The arrays are the caller's; `keep` owns the rest."""

    driver: CubinDriver
    calls: tuple[tuple[Any, ...], ...]
    keep: tuple[Any, ...]

    def run(self, stream: int = 0) -> None:
        """Enqueue in order."""
        for function, grid, threads, shared, params in self.calls:
            self.driver.launch(function, grid, threads, shared, stream, params)


class LaunchCache:
    """Launches packed once per key, which names the addresses and sizes of their arrays; the caller owns those."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self.bound: dict[Hashable, BoundLaunches] = {}

    def run(self, key: Hashable, launches: Callable[[], Iterable[Launch]], stream: int) -> None:
        """Enqueue `launches()`, which is called once per key."""
        if key not in self.bound:
            if len(self.bound) >= MAX_BOUND_LAUNCHES:
                self.bound.clear()
            self.bound[key] = self._kernels.bind(launches())
        self.bound[key].run(stream)


class Kernels:
    """The compiled kernels of a bundle for one device.

    Raises BundleError for an unreadable index and BackendError when no kernel runs on this device.
    """

    def __init__(
        self,
        bundle: Path,
        capability: int,
        driver: CubinDriver | None = None,
        allocate: Callable[[int], Any] | None = None,
    ) -> None:
        """`allocate`: memory of the device, of so many bytes, for kernels that need scratch."""
        self._allocate, self._scratch, self._scratch_bytes = allocate, None, 0
        self._folder, self.capability = Path(bundle) / FOLDER, capability
        entries = [entry for entry in read_index(self._folder) if runs_on(entry.capability, capability)]
        if not entries:
            raise BackendError(
                f"{self._folder}: no kernel for sm_{capability}; run `python -m export.kernels "
                f"{bundle} --target {capability}`"
            )
        self._entries = sorted(entries, key=lambda entry: entry.capability)
        self._driver = driver or CudaDriver()
        self._functions: dict[tuple[str, str], Function] = {}

    @property
    def target(self) -> int:
        """Compute capability of the code that runs here, which block sizes are chosen for."""
        return self._entries[-1].capability

    def has(self, kernel: str) -> bool:
        """Return whether a kernel was compiled for this device, with any constants."""
        return any(entry.kernel == kernel for entry in self._entries)

    def find(self, launch: Launch) -> Entry:
        """Return the entry for a launch, of the highest capability. Raises BackendError when it was not compiled."""
        wanted = dict(launch.constants)
        found = [e for e in self._entries if e.kernel == launch.kernel and e.constants == wanted]
        if not found:
            raise BackendError(
                f"{self._folder}: {launch.kernel} with {wanted} is not compiled for sm_{self.capability}; "
                "run `python -m export.kernels` again"
            )
        return found[-1]

    def bind(self, launches: Iterable[Launch]) -> BoundLaunches:
        """Load the kernels of these launches and pack their arguments."""
        calls: list[tuple[Any, ...]] = []
        keep: list[Any] = []
        for launch in launches:
            entry = self.find(launch)
            scratch = self._reserve(entry, launch.grid) if entry.scratch else None
            params, values = pack(entry, launch.arguments, scratch)
            calls.append((self._function(entry), launch.grid, entry.threads, entry.shared, params))
            keep.extend((values, scratch))
        return BoundLaunches(self._driver, tuple(calls), tuple(keep))

    def _reserve(self, entry: Entry, grid: Sequence[int]) -> Any:
        """Return scratch for all programs of a launch; launches share it, since they run one after the other."""
        nbytes = entry.scratch * prod(grid)
        if self._allocate is None:
            raise BackendError(
                f"{entry.kernel} needs {nbytes} bytes of scratch, and Kernels was made without `allocate`"
            )
        if nbytes > self._scratch_bytes:
            self._scratch, self._scratch_bytes = self._allocate(nbytes), nbytes
        return self._scratch

    def _function(self, entry: Entry) -> Function:
        key = (entry.file, entry.symbol)
        if key not in self._functions:
            cubin = (self._folder / entry.file).read_bytes()
            self._functions[key] = self._driver.load(cubin, entry.symbol, entry.shared)
        return self._functions[key]


def runs_on(compiled: int, device: int) -> bool:
    """Return whether code compiled for one compute capability runs on another.

    Code runs on its own capability, and for 8.x on later ones of the same generation. From 9.0 on it runs on one chip
    only, because its matrix instructions do.
    """
    return compiled == device or (compiled // 10 == device // 10 == 8 and compiled <= device)


def read_index(folder: Path) -> list[Entry]:
    """Return the entries of `folder/index.json`. Raises BundleError."""
    path = folder / INDEX
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise BundleError(f"{path}: format {data['format']} is not {FORMAT}; run `python -m export.kernels` again")
        entries = [Entry(**{**entry, "signature": tuple(entry["signature"])}) for entry in data["kernels"]]
    except FileNotFoundError:
        raise BundleError(f"{folder}: no compiled kernels; run `python -m export.kernels {folder.parent}`") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path}: not readable ({error}); run `python -m export.kernels` again") from None
    for entry in entries:
        if Path(entry.file).name != entry.file:
            raise BundleError(f"{path}: {entry.file!r} is not a file name; run `python -m export.kernels` again")
    return entries


def pack(entry: Entry, arguments: Sequence[Any], scratch: Any = None) -> tuple[Any, list[Any]]:
    """Return the arguments as the driver takes them: an array of addresses, and the values at these addresses."""
    if len(arguments) != len(entry.signature):
        raise BackendError(
            f"{entry.kernel} takes {len(entry.signature)} arguments, not {len(arguments)}; export the "
            "kernels with the same version as the runtime"
        )
    for i, (kind, value) in enumerate(zip(entry.signature, arguments, strict=True)):
        # a raw pointer has no type: data of another type would be misread without an error
        if kind.startswith("*") and str(getattr(value, "dtype", TYPES[kind[1:]])).rpartition(".")[2] != TYPES[kind[1:]]:
            raise BackendError(
                f"{entry.kernel}: argument {i} must be {TYPES[kind[1:]]}, not {value.dtype}; attention is "
                "compiled for half bundles (export with --precision fp16)"
            )
    values: list[Any] = [
        ctypes.c_void_p(pointer(value)) if kind.startswith("*") else SCALARS[kind](value)
        for kind, value in zip(entry.signature, arguments, strict=True)
    ]
    extra = [None if scratch is None else pointer(scratch), None][: entry.extra_pointers]
    values += map(ctypes.c_void_p, extra)
    params = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    return params, values


def pointer(array: Any) -> int:
    """Return the address of a `DeviceArray`, a torch tensor or a `__cuda_array_interface__`; an int is an address."""
    if isinstance(array, int):
        return array
    if hasattr(array, "ptr"):
        return int(array.ptr)
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    return int(array.__cuda_array_interface__["data"][0])
