"""Sections of `benchmarks.gpu_check` about kernels: the device and its ceilings, kernels against references, sweeps."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any

from runtime.bundle.bundle import choose
from runtime.device.kernels import choose_kernels
from runtime.errors import BackendError

from .gpu_run import Run, Skipped
from .gpu_sizes import sizes

LIBRARIES = (
    *("numpy", "torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "cuda-core", "cuda-bindings", "tensorrt"),
    *("tensorrt-rtx", "av", "pillow", "tokenizers", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-runtime"),
)


def machine(run: Run) -> None:
    """Store the versions of the libraries, before one of them is loaded, and the device. Raises without a device.

    Without PyTorch and Triton the sections of the runtime run all the same.
    """
    run.put("python", platform.python_version())
    run.put("date", time.strftime("%Y-%m-%d"))
    run.put("libraries", {name: found for name in LIBRARIES if (found := _version(name))})
    run.put("nvidia_smi", _nvidia_smi())
    try:
        bench = run.machine.bench()
    except ImportError as error:
        run.put("no_pytorch", str(error))
        return
    run.put("device", getattr(bench, "name", "fake"))
    run.put("capability", bench.capability)
    run.put("multiprocessors", bench.multiprocessors)
    run.put("cuda_of_torch", _cuda_of_torch())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm", "--format=csv"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"


def _cuda_of_torch() -> str | None:
    import torch

    return torch.version.cuda


def ceilings(run: Run) -> None:
    """Measure the best rates of the device: a large product in both half types on random data, and a large copy."""
    import torch

    from .gpu_bench import normal

    bench, size = run.machine.bench(), sizes(run.context.sizes)
    n = size.matrix
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        a, b = normal(bench, (n, n), dtype, 1), normal(bench, (n, n), dtype, 2)
        out = torch.empty_like(a)
        run.put(f"{name}_tflops", 2 * n**3 / bench.seconds(lambda: torch.mm(a, b, out=out)) / 1e12)
    source = normal(bench, (size.copy_bytes // 4,), torch.float32, 3)
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source))
    run.put("copy_gbytes_per_second", 2 * source.numel() * 4 / seconds / 1e9)


def ceiling(run: Run) -> float:
    """Return the best rate of products in TFLOP/s, NaN where it was not measured."""
    found = run.so_far("ceilings")
    return max((found[name] for name in ("fp16_tflops", "bf16_tflops") if name in found), default=float("nan"))


def shipped_kernels(run: Run) -> None:
    """Compare the configurations that ship with float32, and time them beside PyTorch's attention and modules."""
    from runtime.kernels import candidates

    from . import bench_kernel_memory_attention as memory
    from . import bench_kernel_window_attention as window

    bench, size = run.machine.bench(), sizes(run.context.sizes)
    flash = candidates.flash_candidates(bench.capability)[:1]
    run.put("memory_attention", memory.measure(bench, size.memory, ceiling(run), (1,), flash, False))
    configs = candidates.window_candidates(bench.capability)[:1]
    for w in size.windows[: size.shipped_windows]:
        if run.has_time(8, f"window_attention_p{w.patch}_t{w.frames}"):
            run.put(f"window_attention_p{w.patch}_t{w.frames}", window.measure(bench, w, configs, False))


def cubins(run: Run) -> None:
    """Launch compiled kernels through `runtime/device/cubin.py`, by the driver alone."""
    bench, size = run.machine.bench(), sizes(run.context.sizes)
    if bench.device != "cuda":
        raise Skipped("no CUDA driver here")
    from . import gpu_cubins

    gpu_cubins.check(bench, size.memory, size.windows[: size.shipped_windows], run.put)


def frames_and_masks(run: Run) -> None:
    """Compare preprocessing with the CPU bit by bit, and postprocessing but for pixels whose logit rounds to zero.

    Compiled kernels need cuda-core, Triton's launches PyTorch: where one is missing, its reason is stored instead.
    """
    device, bench = _available(run, "cuda_core", run.machine.device), _available(run, "pytorch", run.machine.bench)
    if device is None and bench is None:
        raise Skipped(f"{run.results['no_cuda_core']}; {run.results['no_pytorch']}")
    wrong = [] if device is None else _of_networks(run, device)
    if bench is not None:
        wrong += _of_samwise(run, bench)
    if wrong:
        raise ArithmeticError(f"frames or masks differ from those of the CPU: {', '.join(wrong)}")


def _available(run: Run, name: str, make: Callable[[], Any]) -> Any:
    """Return what is made, or None where a library is missing; the reason is stored."""
    try:
        return make()
    except (BackendError, ImportError) as error:
        run.put(f"no_{name}", str(error))
        return None


def _of_networks(run: Run, device: Any) -> list[str]:
    """Compare nano's compiled kernels under the rules of SAM 2, SAM 3 and ReferSAM; returns what differs."""
    from .gpu_images import compare
    from .gpu_video import with_kernels

    size, bundle = sizes(run.context.sizes), with_kernels(run, choose(run.engines / "nano"), device.capability)
    kernels = choose_kernels("on", bundle.folder, device)
    return compare(run, device, kernels, [source for source, _ in size.frames], size.frame_rules, size.mask_rules)


def _of_samwise(run: Run, bench: Any) -> list[str]:
    """Compare and time SAMWISE's rules, launched by Triton; returns the sizes that differ."""
    from . import bench_kernel_postprocess as postprocess
    from . import bench_kernel_preprocess as preprocess

    size, wrong = sizes(run.context.sizes), []
    for source, resized in size.frames:
        name = f"{source[0]}p"
        if run.has_time(4, name):
            into = run.put(f"preprocess_{name}", preprocess.measure(bench, source, resized, size.image_size))
            side = size.image_size // 4
            out = run.put(f"postprocess_{name}", postprocess.measure(bench, 3, side, size.image_size, resized, source))
            few = out["wrong_pixels"] <= 1e-5 * 3 * source[0] * source[1] and out["largest_box_difference"] <= 1
            wrong += [name] * (not into["equal"] or not few)
    return wrong


def memory_of_kernels(run: Run) -> None:
    """Launch four layers from Python and as one graph; compare bytes held before and after many steps of a ring."""
    from runtime.kernels import launch, plan

    from . import bench_kernel_memory_attention as memory

    bench, size = run.machine.bench(), sizes(run.context.sizes)
    case = memory.make_case(bench, size.memory)
    launches = case.launches(plan.FLASH.get(bench.capability, plan.FLASH[80]))
    plain = bench.eager_seconds(lambda: launch.run(launches * 4))
    replayed = bench.seconds(lambda: launch.run(launches * 4))
    run.put("graph_gain", {"plain_seconds": plain, "graph_seconds": replayed, "gain": plain / replayed})
    before = bench.allocated()
    for step in range(size.steps):
        case.inputs["ages"].fill_(-1)[:, : 1 + step % size.memory.slots] = step % 6
        launch.run(launches)
    after = bench.allocated()
    run.put("flat_memory", {"before_bytes": before, "after_bytes": after, "flat": before == after})
    if before != after:
        raise ArithmeticError(f"{after - before} bytes more are held after {size.steps} steps")


def compiled_modules(run: Run) -> None:
    """Time the modules that kernels replace under `torch.compile`."""
    from runtime.kernels import candidates

    from . import bench_kernel_memory_attention as memory
    from . import bench_kernel_window_attention as window

    bench, size = run.machine.bench(), sizes(run.context.sizes)
    case = memory.make_case(bench, size.memory)
    config = candidates.flash_candidates(bench.capability)[0]
    run.put("memory_attention", memory.modules(case, config, True))
    configs = candidates.window_candidates(bench.capability)[:1]
    for w in size.windows[:2]:
        if run.has_time(30, f"window_attention_p{w.patch}_t{w.frames}"):
            run.put(f"window_attention_p{w.patch}_t{w.frames}", window.measure(bench, w, configs, True))


def _sweep(run: Run, wanted: Callable[[Any], bool]) -> None:
    """Time configurations of the flash launch one by one; what there is no time for is left out."""
    from runtime.kernels import candidates

    from . import bench_kernel_memory_attention as memory

    bench, size = run.machine.bench(), sizes(run.context.sizes)
    found = [c for c in candidates.flash_candidates(bench.capability) if wanted(c)]
    if not found:
        raise Skipped(f"no such configuration can run on sm_{bench.capability}")
    case, entries = memory.make_case(bench, size.memory), []
    for config in found:
        if run.has_time(8, str(config)):
            entries += memory.sweep(case, (config,))
            run.put("sweep", entries)


def sweep_flash(run: Run) -> None:
    """Time configurations without tensor descriptors, then more objects with the best."""
    from runtime.kernels import plan

    from . import bench_kernel_memory_attention as memory
    from .gpu_bench import best

    _sweep(run, lambda c: not c.tma and not c.specialize)
    bench, size = run.machine.bench(), sizes(run.context.sizes)
    winner = run.put("winner", best(run.results["sweep"]))
    config, scaled = plan.FlashConfig(**winner["config"]), []
    for n in size.objects:
        if run.has_time(5, f"{n} objects"):
            scaled.append(memory.scale(bench, replace(size.memory, objects=n), config, ceiling(run)))
            run.put("objects", scaled)


def sweep_tma(run: Run) -> None:
    """Time configurations with tensor descriptors."""
    _sweep(run, lambda c: c.tma and not c.specialize)


def sweep_specialized(run: Run) -> None:
    """Time configurations with warp specialization."""
    _sweep(run, lambda c: c.specialize)


def sweep_windows(run: Run) -> None:
    """Time configurations of window attention, one size after another."""
    from runtime.kernels import candidates

    from . import bench_kernel_window_attention as window

    bench, size = run.machine.bench(), sizes(run.context.sizes)
    configs = candidates.window_candidates(bench.capability)
    for w in size.windows:
        name = f"window_attention_p{w.patch}_t{w.frames}"
        if run.has_time(25, name):
            run.put(name, window.measure(bench, w, configs, False) | {"sizes": asdict(w)})
