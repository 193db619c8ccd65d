"""Check and benchmark of everything on a GPU: `python -m benchmarks.gpu_check [--quick] [--out FILE.json]`.

Needs PyTorch, Triton and numpy; reports missing optional libraries. Checks every kernel against references, measures
it against PyTorch and against ceilings measured in the same run, and writes one JSON file. A section that fails is
recorded with its error, and the others run; the file is rewritten after every section.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from runtime.kernels import candidates, launch, plan

from . import bench_kernel_memory_attention as memory_attention
from . import bench_kernel_postprocess as postprocess
from . import bench_kernel_preprocess as preprocess
from . import bench_kernel_window_attention as window_attention
from . import gpu_pipeline
from .gpu_bench import Bench, Cuda, normal
from .gpu_summary import summary


@dataclass(frozen=True, slots=True)
class Workload:
    """Sizes of all measurements. Defaults: SAMWISE at 1024 px, 64 x 64 tokens, 7 memory slots, 16 pointers."""

    memory: plan.MemorySizes = plan.MemorySizes(1, 4096, 7, 64)
    objects: tuple[int, ...] = (1, 4, 16, 64)
    flash: tuple[plan.FlashConfig, ...] = candidates.FLASH_CANDIDATES
    windows: tuple[plan.WindowSizes, ...] = (
        plan.WindowSizes(8, 128, 128, 8),
        plan.WindowSizes(8, 64, 64, 4),
        plan.WindowSizes(8, 32, 32, 2),
        plan.WindowSizes(2, 128, 128, 8),
        plan.WindowSizes(3, 128, 128, 8),
    )
    window: tuple[plan.WindowConfig, ...] = candidates.WINDOW_CANDIDATES
    frames: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = (
        ((360, 640), (576, 1024)),
        ((1080, 1920), (576, 1024)),
        ((2160, 3840), (576, 1024)),
    )
    image_size: int = 1024
    matrix: int = 8192
    copy_bytes: int = 2 << 30
    steps: int = 200
    compiled: bool = True
    engines: Path = Path("engines")
    """Folder whose bundles are run on every backend."""
    video_frames: int = 64
    sentences: tuple[int, ...] = (1, 4, 16)
    compiled_windows: int = 2
    """`torch.compile` takes half a minute per size: the first ones only."""

    def quick(self) -> Workload:
        return replace(
            self,
            objects=(1, 16),
            windows=self.windows[:3],
            frames=self.frames[:2],
            compiled=False,
            steps=50,
            video_frames=32,
            sentences=(1,),
        )


TARGETS = {
    "memory_attention_over_pytorch": 1.3,
    "memory_attention_share_of_ceiling": 0.5,
    "window_attention_over_eager": 2.0,
}


def machine(bench: Bench) -> dict[str, Any]:
    """Device and versions of the libraries."""
    import triton

    found: dict[str, Any] = {
        "device": getattr(bench, "name", "fake"),
        "capability": bench.capability,
        "multiprocessors": bench.multiprocessors,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "date": time.strftime("%Y-%m-%d"),
    }
    with suppress(ImportError):
        import onnxruntime

        found["onnxruntime"] = {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}
    return found


def ceilings(bench: Bench, sizes: Workload) -> dict[str, float]:
    """Best rates of the device: a large product in both half types on random data, and a large copy."""
    n = sizes.matrix
    found = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        a, b = normal(bench, (n, n), dtype, 1), normal(bench, (n, n), dtype, 2)
        out = torch.empty_like(a)
        found[f"{name}_tflops"] = 2 * n**3 / bench.seconds(lambda: torch.mm(a, b, out=out)) / 1e12
    source = normal(bench, (sizes.copy_bytes // 4,), torch.float32, 3)
    target = torch.empty_like(source)
    found["copy_gbytes_per_second"] = 2 * source.numel() * 4 / bench.seconds(lambda: target.copy_(source)) / 1e9
    return found


def graph_gain(bench: Bench, sizes: Workload, config: plan.FlashConfig) -> dict[str, Any]:
    """Four layers of memory attention as a frame runs them: launched from Python, and replayed as one graph."""
    case = memory_attention.make_case(bench, sizes.memory)
    launches = case.launches(config) * 4
    plain = bench.eager_seconds(lambda: launch.run(launches))
    replayed = bench.seconds(lambda: launch.run(launches))
    return {"launches": len(launches), "plain_seconds": plain, "graph_seconds": replayed, "gain": plain / replayed}


def flat_memory(bench: Bench, sizes: Workload, config: plan.FlashConfig) -> dict[str, Any]:
    """Return bytes held before and after many steps, with ages and counts changing in place as a ring does."""
    case = memory_attention.make_case(bench, sizes.memory)
    launches = case.launches(config)
    launch.run(launches)
    before = bench.allocated()
    for step in range(sizes.steps):
        case.inputs["ages"].fill_(-1)[:, : 1 + step % sizes.memory.slots] = step % 6
        launch.run(launches)
    after = bench.allocated()
    return {"steps": sizes.steps, "before_bytes": before, "after_bytes": after, "flat": before == after}


def cubins(bench: Bench, sizes: Workload) -> dict[str, Any]:
    """Compiled kernels through `runtime/device/cubin.py`, launched by the driver alone."""
    if bench.device != "cuda":
        return {"skipped": "no CUDA driver here"}
    from . import gpu_cubins

    return gpu_cubins.check(bench, sizes.memory, sizes.windows[:3])


class Report:
    """Results by section; an error in a section is recorded, and the file is written after each."""

    def __init__(self, path: Path | None, bench: Bench, clock: Callable[[], float] = time.perf_counter) -> None:
        self.data: dict[str, Any] = {"sections": {}, "failed": []}
        self._path, self._clock = path, clock
        self.section("machine", lambda: machine(bench))

    def section(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the result of `work`, or None if it failed; the error is recorded and printed."""
        begin, result = self._clock(), None
        try:
            result = work()
            self.data["sections"][name] = result
            print(f"{name}: done in {self._clock() - begin:.1f} s", flush=True)
        except Exception as error:
            self.data["failed"].append(name)
            where = traceback.format_exc().splitlines()[-8:]
            self.data["sections"][name] = {"error": f"{type(error).__name__}: {str(error)[:500]}", "where": where}
            print(f"{name}: FAILED {type(error).__name__}: {str(error)[:300]}", flush=True)
        self.write()
        return result

    def write(self) -> None:
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.data, indent=1) + "\n")


def check(bench: Bench, sizes: Workload, path: Path | None = None) -> dict[str, Any]:
    """Run every section; return the report, which is also written to `path`."""
    report = Report(path, bench)
    found = report.section("ceilings", lambda: ceilings(bench, sizes))
    ceiling = max(found["fp16_tflops"], found["bf16_tflops"]) if found else float("nan")
    memory = report.section(
        "memory_attention",
        lambda: memory_attention.measure(bench, sizes.memory, ceiling, sizes.objects, sizes.flash, sizes.compiled),
    )
    windows = [
        report.section(
            f"window_attention_p{w.patch}_t{w.frames}",
            lambda: window_attention.measure(bench, w, sizes.window, sizes.compiled and i < sizes.compiled_windows),
        )
        for i, w in enumerate(sizes.windows)
    ]
    for source, resized in sizes.frames:
        name = f"{source[0]}p"
        report.section(f"preprocess_{name}", lambda: preprocess.measure(bench, source, resized, sizes.image_size))
        report.section(
            f"postprocess_{name}",
            lambda: postprocess.measure(bench, 3, sizes.image_size // 4, sizes.image_size, resized, source),
        )
    config = plan.FLASH.get(bench.capability, plan.FLASH[80])
    if memory:
        config = plan.FlashConfig(**memory["winner"]["config"])
    report.section("graph_gain", lambda: graph_gain(bench, sizes, config))
    report.section("flat_memory", lambda: flat_memory(bench, sizes, config))
    report.section("cubins", lambda: cubins(bench, sizes))
    video = gpu_pipeline.Video(sizes.video_frames, bench.used)
    report.section("pipeline", lambda: gpu_pipeline.check(sizes.engines, video, sizes.sentences))
    report.data["verdicts"] = verdicts(memory, windows)
    report.write()
    return report.data


def verdicts(memory: dict[str, Any] | None, windows: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Compare measurements with the targets; a missing measurement does not meet its target."""
    measured: dict[str, float | None] = dict.fromkeys(TARGETS)
    if memory:
        measured["memory_attention_over_pytorch"] = memory["speedup_over_fastest_pytorch"]
        measured["memory_attention_share_of_ceiling"] = memory["share_of_ceiling"]
    gains = [w["speedup_over_eager"] for w in windows if w and "speedup_over_eager" in w]
    measured["window_attention_over_eager"] = min(gains, default=None)
    return [
        {"what": name, "target": TARGETS[name], "measured": value, "met": value is not None and value >= TARGETS[name]}
        for name, value in measured.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Check and measure the kernels on this machine's GPU.")
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer sizes, no torch.compile")
    add("--out", type=Path, default=Path("gpu_check.json"), help="result file (default: %(default)s)")
    add("--engines", type=Path, default=Path("engines"), help="bundles for every backend (default: %(default)s)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device is visible to PyTorch; run this on a GPU machine")
        return 2
    import triton

    # tensor descriptors made on the device need a little scratch memory per launch
    triton.set_allocator(lambda size, align, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = replace(Workload().quick() if options.quick else Workload(), engines=options.engines)
    with torch.inference_mode():
        data = check(Cuda(), sizes, options.out)
    print(summary(data))
    return 1 if data["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
