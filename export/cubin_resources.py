"""Resources and parameters of a compiled kernel, read from the `.nv.info` sections of its cubin (ELF)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.device.cubin import SCALARS, Entry
from runtime.errors import InternalError

SECTION = struct.Struct("<IIQQQQIIQQ")
NO_BITS = 8
"""Type of a section that the file holds no bytes of."""
SIZED = 4
"""Format of an attribute whose value follows it, with its length in the header."""
FRAME_SIZE, PARAMETER, THREADS, REGISTERS = 0x11, 0x17, 0x10, 0x2F


@dataclass(frozen=True, slots=True)
class Resources:
    """Demands of one kernel on its device. `spilled`: bytes of local memory per thread; `parameters`: (offset, size)
    in order; `threads`: those of a program."""

    registers: int
    spilled: int
    threads: int
    parameters: tuple[tuple[int, int], ...]


def read(cubin: bytes, symbol: str) -> Resources:
    """Return the resources of the kernel `symbol`, the only one in `cubin`."""
    sections = _sections(cubin)
    of_kernel = list(_attributes(sections[f".nv.info.{symbol}"]))
    of_file = dict(_attributes(sections[".nv.info"]))
    found = sorted(struct.unpack("<IHHI", value)[1:] for kind, value in of_kernel if kind == PARAMETER)
    return Resources(
        registers=struct.unpack("<II", of_file[REGISTERS])[1],
        spilled=struct.unpack("<II", of_file[FRAME_SIZE])[1],
        threads=struct.unpack("<III", dict(of_kernel)[THREADS])[0],
        parameters=tuple((offset, flags >> 18 & 0x3FFF) for _, offset, flags in found),
    )


def require_layout(entry: Entry, resources: Resources) -> None:
    """Compare what the runtime passes to a kernel with the kernel's own table. Raises InternalError."""
    sizes = [8 if kind.startswith("*") else ctypes.sizeof(SCALARS[kind]) for kind in entry.signature]
    expected, place = [], 0
    for size in (*sizes, *[8] * entry.extra_pointers):
        place += -place % size
        expected.append((place, size))
        place += size
    if tuple(expected) != resources.parameters or entry.threads != resources.threads:
        raise InternalError(
            f"{entry.kernel} for sm_{entry.capability} takes parameters at {resources.parameters} and "
            f"{resources.threads} threads, the runtime passes {tuple(expected)} and {entry.threads}; "
            "correct kernels/signatures.py"
        )


def _sections(elf: bytes) -> dict[str, bytes]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [SECTION.unpack_from(elf, table + i * size) for i in range(count)]
    text = headers[names][4]

    def name(offset: int) -> str:
        return elf[text + offset : elf.index(b"\0", text + offset)].decode()

    return {name(h[0]): b"" if h[1] == NO_BITS else elf[h[4] : h[4] + h[5]] for h in headers}


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield attributes by kind; one without a value of its own has its two bytes."""
    place = 0
    while place < len(data):
        form, kind, length = struct.unpack_from("<BBH", data, place)
        place += 4
        yield kind, data[place : place + length] if form == SIZED else data[place - 2 : place]
        place += length if form == SIZED else 0
