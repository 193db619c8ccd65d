"""Sections of `benchmarks.gpu_check`, in the order of their value: a run that ends early lacks what matters least."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """One process.

    function  MODULE:NAME, called with a `gpu_run.Run`
    limit     seconds after which it is killed
    least     seconds below which it is not begun
    group     name for `--only`, shared by sections that belong together
    after     sections without whose results it cannot run
    required  whether the others need it: without a device nothing runs
    runtime   whether it shows that the runtime itself runs
    """

    name: str
    function: str
    limit: float
    least: float = 5.0
    group: str = ""
    after: tuple[str, ...] = ()
    required: bool = False
    runtime: bool = False


def _video(name: str, limit: float, least: float, group: str, after: str = "") -> Section:
    needed = (after,) if after else ()
    return Section(name, f"benchmarks.gpu_video:{name}", limit, least, group, needed, runtime=name == "nano_plain")


def _base(name: str, limit: float, least: float, group: str = "base") -> Section:
    return Section(name, f"benchmarks.gpu_base:{name}", limit, least, group)


def _kernels(name: str, limit: float, least: float, group: str = "kernels") -> Section:
    return Section(name, f"benchmarks.gpu_kernels:{name}", limit, least, group)


SECTIONS = (
    Section("machine", "benchmarks.gpu_kernels:machine", 60, required=True),
    _kernels("ceilings", 40, 10),
    _kernels("shipped_kernels", 90, 15),
    _kernels("cubins", 60, 15),
    _kernels("frames_and_masks", 40, 10),
    _video("nano_on_cpu", 40, 5, "nano"),
    _video("nano_plain", 45, 8, "nano", "nano_on_cpu"),
    _video("nano_graphs", 45, 8, "nano", "nano_on_cpu"),
    _video("nano_kernels", 60, 10, "nano", "nano_on_cpu"),
    _video("clicks_plain", 30, 8, "clicks", "nano_on_cpu"),
    _video("clicks_graphs", 30, 8, "clicks", "nano_on_cpu"),
    _video("clicks_kernels", 45, 10, "clicks", "nano_on_cpu"),
    Section("base_stages", "benchmarks.gpu_stages:base_stages", 90, 15, "base"),
    _base("base_plain", 60, 15),
    _base("base_graphs", 60, 15),
    _base("base_kernels", 90, 20),
    _base("base_default", 60, 15),
    _base("base_ahead", 90, 15),
    Section("pytorch_eager", "benchmarks.gpu_pytorch:pytorch_eager", 75, 20, "pytorch"),
    Section("pytorch_compiled", "benchmarks.gpu_pytorch:pytorch_compiled", 180, 60, "pytorch"),
    _base("objects", 60, 15, "scale"),
    _base("streams", 60, 15, "scale"),
    Section("split_stages", "benchmarks.gpu_stages:split_stages", 60, 15, "base"),
    Section("tensorrt", "benchmarks.gpu_stages:tensorrt", 60, 20, "tensorrt"),
    _kernels("memory_of_kernels", 30, 10, "sweeps"),
    _kernels("sweep_flash", 60, 15, "sweeps"),
    _kernels("sweep_windows", 90, 20, "sweeps"),
    _kernels("compiled_modules", 90, 30, "sweeps"),
    _kernels("sweep_tma", 45, 15, "sweeps"),
    # warp specialization of Hopper is young: it may hang, and is alone for that
    _kernels("sweep_specialized", 25, 10, "sweeps"),
)
