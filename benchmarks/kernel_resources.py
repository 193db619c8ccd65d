"""Registers, spilled bytes and shared memory of every kernel, on every target: read from what Triton compiles.

    python -m benchmarks.kernel_resources      renews the installed Triton's part of results/kernel_resources.json

Needs no GPU. Another version: `pip install --no-deps --target FOLDER triton==3.6.0` and PYTHONPATH=FOLDER.
The tests compare what they compile with the table, and its kernels with `kernels/plan.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from export import cubin_resources
from export import kernels as aot
from runtime.kernels import plan

TABLE = Path(__file__).parent / "results" / "kernel_resources.json"
COLUMNS = ("registers", "spilled", "shared")


def published_launches(capability: int) -> Iterator[plan.Launch]:
    """Yield every launch of the published sizes of SAMWISE; frames and masks are those of every network."""
    for config in filter(None, (plan.FLASH[capability], plan.FLASH_TMA.get(capability))):
        yield from aot.memory_launches(plan.MemorySizes(1, 4096, 6, 60), capability, config)
    for patch in (8, 4, 2):
        yield from aot.window_launches(8, patch, 256, capability)
        yield from aot.step_launches(8, patch, 256, capability)
    yield from aot.image_launches(float_images=True)


def measure(capability: int) -> dict[str, list[int]]:
    """Compile every kernel for one target. Returns its numbers in the order of `COLUMNS`."""
    numbers = {}
    for name, launch in aot.distinct(published_launches(capability)).items():
        entry, cubin = aot.compile_launch(launch, capability)
        found = cubin_resources.read(cubin, entry.symbol)
        numbers[name] = [found.registers, found.spilled, entry.shared]
    return numbers


def main() -> None:
    """Renew the part of the table that belongs to the installed version of Triton."""
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {"columns": COLUMNS, "triton": {}}
    table["triton"][metadata.version("triton")] = {f"sm_{target}": measure(target) for target in aot.TARGETS}
    text = json.dumps(table, indent=1, sort_keys=True)
    TABLE.write_text(text.replace("[\n     ", "[").replace(",\n     ", ", ").replace("\n    ]", "]") + "\n")


if __name__ == "__main__":
    main()
