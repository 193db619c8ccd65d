"""GPU code of one architecture in a library that holds that of many.

Format of a fat binary, as CUDA 13 writes it: a header (magic, version, its size, size of the entries), then entries
with a header of their own (kind: 1 PTX, 2 ELF; version; its size; size of the code; at 0x1c the architecture).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

MAGIC = struct.pack("<I", 0xBA55ED50)
ELF = 2


def keep_architecture(library: bytearray, capability: int) -> int:
    """Overwrite the code of all other architectures with zeros, in place, which compress to nothing; returns bytes.

    The library stays as long and its tables stay as they are, so it loads; a kernel of another architecture would not.
    """
    zeroed = 0
    for start, size, kind, architecture in list(entries(library)):
        if (kind, architecture) != (ELF, capability):
            library[start : start + size] = bytes(size)
            zeroed += size
    return zeroed


def entries(library: bytes | bytearray) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start of the code, size, kind, architecture) of each entry of each fat binary."""
    at = library.find(MAGIC)
    while at >= 0:
        _, version, header, size = struct.unpack_from("<IHHQ", library, at)
        end = at + header + size
        if version != 1 or header != 16 or end > len(library):  # the same bytes by chance
            at = library.find(MAGIC, at + 4)
            continue
        entry = at + header
        while entry + 0x20 <= end:
            kind, _, length, code = struct.unpack_from("<HHIQ", library, entry)
            (architecture,) = struct.unpack_from("<I", library, entry + 0x1C)
            if kind not in (1, ELF) or not 32 <= length <= 256 or entry + length + code > end:
                break
            yield entry + length, code, kind, architecture
            entry += length + code
        at = library.find(MAGIC, end)
