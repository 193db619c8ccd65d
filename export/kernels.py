"""Ahead-of-time compilation of the kernels into a bundle: `python -m export.kernels engines/NAME [--target 90]`.

Needs Triton and no GPU. Writes `kernels/*.cubin` and `kernels/index.json` (see `runtime/device/cubin.py`) and renews
the manifest's list of files. A kernel is compiled once per target and set of constants that the bundle needs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from runtime.bundle.bundle import file_sha256
from runtime.bundle.manifest import Manifest, SplitStageSpec, StageSpec, TensorSpec
from runtime.device.cubin import FOLDER, FORMAT, INDEX, Entry
from runtime.device.scratch import ALIGNMENT
from runtime.errors import SamwiseRuntimeError, UserError, fail
from runtime.kernels import plan, plan_step
from runtime.kernels.signatures import ARGUMENT_TYPES

from . import cubin_resources

TARGETS = (80, 86, 89, 90, 120)
"""A100, RTX 30, RTX 40 and L4, Hopper, RTX 50."""

IMAGE_TARGETS = (80, 90, 120)
"""Enough for frames and masks: code for sm_80 runs on sm_86 and sm_89 as well, and has no block sizes to choose."""

Report = Callable[[str], None]


class _Names(dict):
    """Stands for the arrays of a plan, which passes them through untouched."""

    def __missing__(self, key: str) -> str:
        return key


NAMES = _Names()


def launches(manifest: Manifest, capability: int) -> Iterator[plan.Launch]:
    """Yield every launch that the bundle can need on a device, with names in place of arrays and without real grids."""
    for name, split in manifest.split_stages.items():
        yield from SPLIT_LAUNCHES[split.kernel](manifest, manifest.stages[name], split, capability)
    rules = {rule for settings in manifest.networks.values() for rule in settings.get("resample", {}).values()}
    yield from image_launches("float" in rules)


def image_launches(float_images: bool) -> Iterator[plan.Launch]:
    """Yield the launches that take frames in and masks out; their code is the same for every network. `float_images`:
    also those of images that are resized without rounding to bytes (SAM 2)."""
    taps, sizes = ("first", "weight"), ((1, 1), (1, 1), 1, (1, 1))
    yield from plan.preprocess("frame", taps, taps, "table", "out", *sizes)
    if float_images:
        yield from plan.preprocess_float("frame", taps, taps, "unit", "norm", "out", *sizes)
    yield from plan.postprocess("low", taps, taps, "packed", "stats", 1, 1, (1, 1))


def memory_launches(
    sizes: plan.MemorySizes, capability: int, config: plan.FlashConfig | None = None
) -> Iterator[plan.Launch]:
    """Yield the launches of memory attention, with the keys of an object in one piece and split."""
    for splits in (1, 2):
        split = replace(config or plan.FLASH[capability], splits=splits)
        yield from plan.memory_attention(NAMES, NAMES, "out", sizes, split)


def window_launches(frames: int, patch: int, channels: int, capability: int) -> Iterator[plan.Launch]:
    """Yield the launches of window attention for clips of up to `frames`."""
    for length in range(1, frames + 1):
        sizes = plan.WindowSizes(length, patch, patch, patch, channels)
        yield from plan.window_attention(NAMES, NAMES, "out", sizes, plan.WINDOW[capability])


def step_launches(frames: int, patch: int, channels: int, capability: int) -> Iterator[plan.Launch]:
    """Yield the launches of window attention for the newest frame of clips of 2 to `frames`."""
    for length in range(2, frames + 1):
        sizes = plan.WindowSizes(length, patch, patch, patch, channels)
        yield from plan_step.window_attention_step(NAMES, NAMES, "out", sizes, plan.WINDOW[capability])


def _numbers(tensor: TensorSpec) -> list[int]:
    """Return the shape with 0 in place of symbols."""
    return [0 if isinstance(size, str) else size for size in tensor.shape]


def _split_memory(manifest: Manifest, spec: StageSpec, split: SplitStageSpec, capability: int) -> Iterator[plan.Launch]:
    """Compute one object's memory attention with all slots."""
    _, tokens, width = _numbers(spec.output(split.tensors["conditioned"]))
    narrow = _numbers(spec.input(split.tensors["memory"]))[3]
    slots, pointers = (manifest.bounds[symbol][1] for symbol in ("slots", "pointers"))
    return memory_launches(plan.MemorySizes(1, tokens, slots, width // narrow * pointers, width, narrow), capability)


def _split_window(manifest: Manifest, spec: StageSpec, split: SplitStageSpec, capability: int) -> Iterator[plan.Launch]:
    narrow = _numbers(manifest.stages[split.subgraphs[0]].output(split.tensors["narrow"]))[3]
    return window_launches(manifest.bounds["frames"][1], split.sizes["patch"], narrow, capability)


def _split_step(manifest: Manifest, spec: StageSpec, split: SplitStageSpec, capability: int) -> Iterator[plan.Launch]:
    narrow = _numbers(spec.input(split.tensors["kept"]))[3]
    return step_launches(manifest.bounds["kept"][1] + 1, split.sizes["patch"], narrow, capability)


SPLIT_LAUNCHES = {
    "memory_attention": _split_memory,
    "window_attention": _split_window,
    "window_attention_step": _split_step,
}
"""Launches of a split stage by the kernel that it names."""


def signature(function: Any, launch: plan.Launch) -> dict[str, str]:
    """Return Triton's types of the kernel's parameters, in order."""
    arguments = iter(ARGUMENT_TYPES[launch.kernel])
    return {name: "constexpr" if name in launch.constants else next(arguments) for name in function.arg_names}


def compile_launch(launch: plan.Launch, capability: int) -> tuple[Entry, bytes]:
    """Compile one kernel. Raises UserError when it does not fit the device."""
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
    limit = plan.SHARED_LIMIT[capability]
    if metadata.shared > limit:
        raise UserError(
            f"{launch.kernel} needs {metadata.shared} bytes of shared memory on sm_{capability}, which has "
            f"{limit}; choose smaller blocks in kernels/plan.py"
        )
    if metadata.global_scratch_size and metadata.global_scratch_align > ALIGNMENT:
        raise UserError(f"{launch.kernel} needs scratch aligned to {metadata.global_scratch_align}, not {ALIGNMENT}")
    kinds = tuple(kind for kind in types.values() if kind != "constexpr")
    (declared,) = re.findall(r"\.entry\s+\w+\s*\((.*?)\)", compiled.asm["ptx"], re.DOTALL)[:1]
    parameters = declared.count(".param")
    name = f"{launch.kernel}-{capability}-{hashlib.sha256(cubin).hexdigest()[:12]}.cubin"
    identity = launch.kernel, capability, dict(launch.constants), name, metadata.name
    demands = 32 * metadata.num_warps, metadata.shared, metadata.global_scratch_size
    entry = Entry(*identity, kinds, parameters - len(kinds), *demands)
    cubin_resources.require_layout(entry, cubin_resources.read(cubin, entry.symbol))
    return entry, cubin


def distinct(launches: Iterable[plan.Launch]) -> dict[str, plan.Launch]:
    """Return one launch per kernel and set of constants, by a text that names both."""
    found: dict[str, plan.Launch] = {}
    for launch in launches:
        constants = " ".join(f"{name}={value}" for name, value in sorted(launch.constants.items()))
        found.setdefault(f"{launch.kernel} {constants}", launch)
    return found


def compile_kernels(
    folder: Path, targets: Sequence[int], plans: Callable[[int], Iterable[plan.Launch]], report: Report = print
) -> list[Entry]:
    """Compile the launches of `plans` for each target, each kernel once; write code and index to `folder`."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("TRITON_INTERPRET=1 is set: the interpreter compiles nothing; unset it")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise UserError(f"target {unknown[0]} is not one of {', '.join(map(str, TARGETS))}")
    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # a third of the size
    folder.mkdir(exist_ok=True)
    for old in (*folder.glob("*.cubin"), *folder.glob(INDEX)):
        old.unlink()
    entries: list[Entry] = []
    for target in targets:
        built = [compile_launch(launch, target) for launch in distinct(plans(target)).values()]
        for entry, cubin in built:
            (folder / entry.file).write_bytes(cubin)
            entries.append(entry)
        kilobytes = sum(len(cubin) for _, cubin in built) >> 10
        spilled = sum(cubin_resources.read(cubin, entry.symbol).spilled for entry, cubin in built)
        report(f"sm_{target}: {len(built)} kernels, {kilobytes} KB, {spilled} bytes of registers spilled per thread")
    # without scratch as before there was any, for runtimes that know of none
    kernels = [{k: v for k, v in asdict(entry).items() if k != "scratch" or v} for entry in entries]
    index = {"format": FORMAT, "kernels": kernels}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return entries


def add_kernels(folder: Path, manifest: Manifest, report: Report) -> None:
    """Compile what a bundle that is being exported can need into its folder; say so where it cannot be done here."""
    if importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
        report("no compiled kernels: needs Triton, without TRITON_INTERPRET; later: python -m export.kernels BUNDLE")
        return
    targets = TARGETS if manifest.split_stages else IMAGE_TARGETS
    compile_kernels(folder / FOLDER, targets, partial(launches, manifest), report)


def compile_bundle(bundle: Path, targets: Sequence[int], report: Report = print) -> list[Entry]:
    """Compile every kernel that `bundle` can need into its `kernels/` folder and renew its manifest."""
    manifest, folder = Manifest.load(bundle), bundle / FOLDER
    entries = compile_kernels(folder, targets, partial(launches, manifest), report)
    kept = {name: digest for name, digest in manifest.files.items() if not name.startswith(f"{FOLDER}/")}
    added = {f"{FOLDER}/{path.name}": file_sha256(path) for path in sorted(folder.iterdir())}
    replace(manifest, files={**kept, **added}).dump(bundle)
    return entries


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m export.kernels", description="Compile the kernels into a bundle.")
    parser.add_argument("bundle", type=Path, metavar="engines/NAME")
    capabilities = "compute capabilities without the dot (default: %(default)s)"
    parser.add_argument("--target", default=",".join(map(str, TARGETS)), metavar="90,120", help=capabilities)
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
