"""Compile the kernels into a bundle, for machines without Triton: `python -m export.kernels engines/NAME [--target 90]`.

Needs Triton and no GPU. Writes `kernels/*.cubin` and `kernels/index.json` (see `runtime/device/cubin.py`) and renews the
manifest's list of files. A kernel is compiled once per capability and set of constants that the bundle's sizes can ask for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runtime.bundle.bundle import file_sha256
from runtime.bundle.manifest import Manifest
from runtime.device.cubin import FOLDER, FORMAT, INDEX, Entry
from runtime.errors import SamwiseRuntimeError, UserError, fail
from runtime.kernels import plan, reference

TARGETS = (80, 86, 89, 90, 120)
"""A100, RTX 30, RTX 40 and L4, Hopper, RTX 50."""
SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Shared memory that one program may take (CUDA programming guide, compute capabilities)."""

POINTERS = {
    "ages_ptr": "i32",
    "counts_ptr": "i32",
    "cosine_ptr": "fp32",
    "sine_ptr": "fp32",
    "partial_ptr": "fp32",
    "lse_ptr": "fp32",
    "frame_ptr": "u8",
    "row_first_ptr": "i32",
    "column_first_ptr": "i32",
    "table_ptr": "fp32",
    "low_ptr": "fp32",
    "packed_ptr": "u8",
    "stats_ptr": "i32",
}
"""Types of what the pointers point to; half where nothing stands. Weights of taps differ by kernel: `TAP_WEIGHTS`."""
TAP_WEIGHTS = {"preprocess": "i32", "postprocess": "fp32"}
PIXELS = "fp32"
"""What `preprocess` writes: `pixels` is float32 in every bundle (`export.bundle.KEPT_FLOAT`)."""
FLOATS = ("scale", "epsilon")


class _Any(dict):
    """Stands for every array: a plan passes arrays through untouched."""

    def __missing__(self, key: str) -> str:
        return key


def launches(manifest: Manifest, capability: int) -> Iterator[plan.Launch]:
    """Every launch that the bundle can ask for on a device, with names in place of arrays. Grids mean nothing here."""
    some, bits = _Any(), reference.PRECISION_BITS
    sizes, windows = memory_sizes(manifest), window_sizes(manifest)
    for splits in (1, 2):
        config = replace(plan.FLASH[capability], splits=splits)
        yield from plan.memory_attention(some, some, "out", sizes, config)
    for patch, channels in windows:
        for frames in range(1, manifest.networks["samwise"]["window"] + 1):
            window = plan.WindowSizes(frames, patch, patch, patch, channels)
            yield from plan.window_attention(some, some, "out", window, plan.WINDOW[capability])
    taps = ("first", "weight")
    yield from plan.preprocess("frame", taps, taps, "table", "out", (1, 1), (1, 1), 1, (1, 1), bits)
    yield from plan.postprocess("low", taps, taps, "packed", "stats", 1, 1, (1, 1), reference.MASK_TAPS)


def memory_sizes(manifest: Manifest) -> plan.MemorySizes:
    """One object's memory attention with all slots, of the published widths where the stage is not cut for the kernel."""
    memory = manifest.networks["samwise"]["memory"]
    spec = manifest.stages["memory_attention"] if "memory_attention" in manifest.split_stages else None
    widths = (spec.output("conditioned").shape[2], spec.input("memory").shape[3]) if spec else (256, 64)
    tokens = (manifest.image_size // 16) ** 2
    return plan.MemorySizes(
        1, tokens, memory["num_maskmem"] - 1, widths[0] // widths[1] * (memory["max_obj_ptrs"] - 1), *widths
    )


def window_sizes(manifest: Manifest) -> list[tuple[int, int]]:
    """(patch, channels) of every adapter that is cut for the kernel; the published ones where none is."""
    splits = [split for split in manifest.split_stages.values() if split.kernel == "window_attention"]
    found = [
        (split.sizes["patch"], manifest.stages[split.subgraphs[0]].output(split.tensors["narrow"]).shape[3])
        for split in splits
    ]
    return found or [(patch, 256) for patch in (8, 4, 2)]


def signature(function: Any, launch: plan.Launch) -> dict[str, str]:
    """Triton's types of the kernel's parameters, in order."""
    types = {}
    for name in function.arg_names:
        if name in launch.constants:
            types[name] = "constexpr"
        elif name.endswith("_weight_ptr") and launch.kernel in TAP_WEIGHTS:
            types[name] = "*" + TAP_WEIGHTS[launch.kernel]
        elif launch.kernel == "preprocess" and name == "out_ptr":
            types[name] = "*" + PIXELS
        elif name.endswith("_ptr"):
            types[name] = "*" + POINTERS.get(name, "fp16")
        else:
            types[name] = "fp32" if name in FLOATS else "i32"
    return types


def compile_launch(launch: plan.Launch, capability: int) -> tuple[Entry, bytes]:
    """Machine code of one kernel. Raises UserError when it does not fit the device."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from runtime.kernels.launch import KERNELS

    function = KERNELS[launch.kernel]
    types = signature(function, launch)
    constants = {(i,): launch.constants[name] for i, name in enumerate(types) if name in launch.constants}
    # arrays are aligned to 16 bytes by every allocator: that is what lets loads be 16 bytes wide
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(function, types, constants, aligned)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cubin, metadata = compiled.asm["cubin"], compiled.metadata
    if metadata.shared > SHARED_LIMIT[capability] or getattr(metadata, "global_scratch_size", 0):
        raise UserError(
            f"{launch.kernel} needs {metadata.shared} bytes of shared memory on sm_{capability}, which has "
            f"{SHARED_LIMIT[capability]}, or scratch; choose smaller blocks in kernels/plan.py"
        )
    kinds = tuple(kind for kind in types.values() if kind != "constexpr")
    parameters = re.search(r"\.entry\s+\w+\s*\((.*?)\)", compiled.asm["ptx"], re.DOTALL)[1].count(".param")
    name = f"{launch.kernel}-{capability}-{hashlib.sha256(cubin).hexdigest()[:12]}.cubin"
    return Entry(
        launch.kernel,
        capability,
        dict(launch.constants),
        name,
        metadata.name,
        kinds,
        parameters - len(kinds),
        32 * metadata.num_warps,
        metadata.shared,
    ), cubin


def compile_bundle(bundle: Path, targets: Sequence[int], report: Callable[[str], None] = print) -> list[Entry]:
    """Compile everything `bundle` can ask for into its `kernels/` folder and renew its manifest."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("TRITON_INTERPRET=1 is set: the interpreter compiles nothing; unset it")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise UserError(f"target {unknown[0]} is not one of {', '.join(map(str, TARGETS))}")
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # a third of the size
    manifest = Manifest.load(bundle)
    folder = bundle / FOLDER
    folder.mkdir(exist_ok=True)
    for old in (*folder.glob("*.cubin"), *folder.glob(INDEX)):
        old.unlink()
    entries: list[Entry] = []
    for target in targets:
        known: set[str] = set()
        for launch in launches(manifest, target):
            key = f"{launch.kernel} {sorted(launch.constants.items())}"
            if key not in known:
                known.add(key)
                entry, cubin = compile_launch(launch, target)
                (folder / entry.file).write_bytes(cubin)
                entries.append(entry)
        report(
            f"sm_{target}: {len(known)} kernels, {sum(e.shared for e in entries if e.capability == target) >> 10} KB "
            "shared memory in sum"
        )
    index = {"format": FORMAT, "kernels": [asdict(entry) for entry in entries]}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    kept = {name: digest for name, digest in manifest.files.items() if not name.startswith(f"{FOLDER}/")}
    added = {f"{FOLDER}/{path.name}": file_sha256(path) for path in sorted(folder.iterdir())}
    replace(manifest, files={**kept, **added}).dump(bundle)
    return entries


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m export.kernels", description="Compile the kernels into a bundle.")
    parser.add_argument("bundle", type=Path, metavar="engines/NAME")
    parser.add_argument(
        "--target",
        default=",".join(map(str, TARGETS)),
        metavar="90,120",
        help="compute capabilities without the dot (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        names = [name.strip().removeprefix("sm_") for name in options.target.split(",")]
        if not all(name.isdigit() for name in names):
            raise UserError(f"--target {options.target!r} is not a list like 80,90")
        compile_bundle(options.bundle, [int(name) for name in names])
        return 0
    except SamwiseRuntimeError as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
