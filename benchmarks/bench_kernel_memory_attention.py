"""Memory attention: our kernels against PyTorch's attention on the 256-wide form, eager and compiled.

Operations counted: scores and weighted values of the form that runs, 2 n k (256 + 64) for ours and 2 n k (256 + 256)
for the wide form; the projections of keys are work of ours that is timed but not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from runtime.kernels import launch, plan, reference

from .gpu_bench import Bench, best, normal, recorded, require_close, scratch


@dataclass
class Case:
    """Inputs of one size, their scratch, and the launches for a configuration."""

    bench: Bench
    sizes: plan.MemorySizes
    inputs: dict[str, torch.Tensor]
    value_weight: torch.Tensor
    out: torch.Tensor

    def launches(self, config: plan.FlashConfig) -> list[plan.Launch]:
        config = plan.flash_config(self.bench.capability, self.sizes, self.bench.multiprocessors, config)
        assert config.splits is not None, "settled by `flash_config`"
        arrays = scratch(self.bench, self.sizes.scratch(config.splits))
        return plan.memory_attention(self.inputs, arrays, self.out, self.sizes, config)

    def flop(self, value_width: int) -> float:
        return 2.0 * self.sizes.objects * self.sizes.tokens * self.sizes.capacity * (self.sizes.width + value_width)


def make_case(bench: Bench, sizes: plan.MemorySizes) -> Case:
    """Full memory: every slot present, in ring order, and every pointer."""
    b, n, d, m = sizes.objects, sizes.tokens, sizes.width, sizes.memory_width
    half = torch.float16
    side = int(n**0.5)
    cosine, sine = reference.rotary_tables(side, d)
    ages = torch.arange(sizes.slots, dtype=torch.int32).roll(2).repeat(b, 1)
    inputs = {
        "queries": normal(bench, (b, n, d), half, 1),
        "memory": normal(bench, (b, sizes.slots, n, m), half, 2),
        "pointers": normal(bench, (b, sizes.pointers, m), half, 3),
        "key_weight": normal(bench, (d, m), half, 4, 0.125),
        "key_bias": normal(bench, (d,), half, 5),
        "position": normal(bench, (n, m), half, 6),
        "temporal": normal(bench, (7, m), half, 7, 0.1),
        "ages": ages.to(bench.device),
        "pointer_counts": torch.full((b,), sizes.pointers, dtype=torch.int32, device=bench.device),
        "cosine": torch.tensor(cosine, device=bench.device),
        "sine": torch.tensor(sine, device=bench.device),
    }
    out = torch.full((b, n, m), float("nan"), device=bench.device, dtype=half)
    return Case(bench, sizes, inputs, normal(bench, (d, m), half, 8, 0.125), out)


def rotate(x_bnd: torch.Tensor, cosine_nk: torch.Tensor, sine_nk: torch.Tensor) -> torch.Tensor:
    """Rotary position on adjacent pairs, in float32, back in the input's type (as the exported graphs do)."""
    even, odd = x_bnd.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cosine_nk - odd * sine_nk, even * sine_nk + odd * cosine_nk), -1)
    return turned.flatten(-2).to(x_bnd.dtype)


def wide_inputs(case: Case, dtype: torch.dtype = torch.float16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated queries, rotated keys and memory of the module form: (b, n, d), (b, k, d), (b, k, m)."""
    i = {name: x.to(dtype) if x.dtype == torch.float16 else x for name, x in case.inputs.items()}
    memory, pointers = i["memory"], i["pointers"]
    placed = memory + i["position"] + i["temporal"][i["ages"].long()][:, :, None]
    keys = rotate(F.linear(placed, i["key_weight"], i["key_bias"]), i["cosine"], i["sine"]).flatten(1, 2)
    keys = torch.cat((keys, F.linear(pointers, i["key_weight"], i["key_bias"])), 1)
    return rotate(i["queries"], i["cosine"], i["sine"]), keys, torch.cat((memory.flatten(1, 2), pointers), 1)


def wide_module(case: Case) -> torch.Tensor:
    """Attend as a plain module: project and rotate keys, project values to 256, attend."""
    queries, keys, memory = wide_inputs(case)
    values = F.linear(memory, case.value_weight)
    return F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None])


def exact(case: Case, rows: slice) -> torch.Tensor:
    """Narrow form in float32 for the queries of `rows`."""
    queries, keys, memory = wide_inputs(case, torch.float32)
    scores = queries[:, rows] @ keys.transpose(1, 2) / case.sizes.width**0.5
    return scores.softmax(-1) @ memory


def sweep(case: Case, candidates: tuple[plan.FlashConfig, ...]) -> list[dict[str, Any]]:
    """Error and times of every configuration; one that does not compile or is wrong carries its reason."""
    rows = slice(0, min(512, case.sizes.tokens))
    expected = exact(case, rows)
    results = []
    for config in candidates:
        with recorded({"config": asdict(config)}) as entry:
            case.out.fill_(float("nan"))
            launches = case.launches(config)
            launch.run(launches)
            require_close(entry, case.out[:, rows], expected)
            if not torch.isfinite(case.out).all():
                raise ArithmeticError("a row of the result is not finite")
            entry["splits"] = launches[1].grid[1]
            entry["seconds"] = case.bench.seconds(lambda: launch.run(launches))
            entry["flash_seconds"] = case.bench.seconds(lambda: launch.run(launches[1:2]))
            entry["tflops"] = case.flop(case.sizes.memory_width) / entry["seconds"] / 1e12
        results.append(entry)
    return results


def pytorch_attention(case: Case) -> dict[str, Any]:
    """Time PyTorch's attention alone on the 256-wide form (projected keys and values given), by backend."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    queries, keys, memory = wide_inputs(case)
    q, k, v = queries[:, None], keys[:, None], F.linear(memory, case.value_weight)[:, None]
    choices = {
        "default": None,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    results: dict[str, dict[str, Any]] = {name: {} for name in choices}
    for name, backend in choices.items():
        with recorded(results[name]) as entry, sdpa_kernel([backend]) if backend else nullcontext():
            entry["seconds"] = case.bench.seconds(lambda: F.scaled_dot_product_attention(q, k, v))
            entry["tflops"] = case.flop(case.sizes.width) / entry["seconds"] / 1e12
    return results


def modules(case: Case, config: plan.FlashConfig, compiled: bool) -> dict[str, Any]:
    """Time the whole operation from memory to projected values: ours, the eager module, the compiled module."""
    launches = case.launches(config)

    def ours() -> torch.Tensor:
        launch.run(launches)
        return F.linear(case.out, case.value_weight)

    works: dict[str, Callable[[], Any]] = {"kernels": ours, "eager": lambda: wide_module(case)}
    if compiled:
        compiled_module = torch.compile(wide_module, dynamic=False)
        works["compiled"] = lambda: compiled_module(case)
    results: dict[str, dict[str, Any]] = {name: {} for name in works}
    for name, work in works.items():
        with recorded(results[name]) as entry:
            entry["seconds"] = case.bench.seconds(work)
    return results


def measure(
    bench: Bench,
    sizes: plan.MemorySizes,
    ceiling_tflops: float,
    objects: tuple[int, ...],
    candidates: tuple[plan.FlashConfig, ...],
    compiled: bool,
) -> dict[str, Any]:
    """Everything about memory attention, as JSON values."""
    case = make_case(bench, sizes)
    results: dict[str, Any] = {"sizes": asdict(sizes), "keys": sizes.capacity, "sweep": sweep(case, candidates)}
    winner = best(results["sweep"])
    config = plan.FlashConfig(**winner["config"])
    results["winner"] = winner
    results["pytorch"] = pytorch_attention(case)
    fastest = min((r["seconds"] for r in results["pytorch"].values() if "seconds" in r), default=None)
    results["speedup_over_fastest_pytorch"] = fastest / winner["seconds"] if fastest else None
    default = results["pytorch"]["default"].get("seconds")
    results["speedup_over_default_pytorch"] = default / winner["seconds"] if default else None
    results["share_of_ceiling"] = winner["tflops"] / ceiling_tflops
    results["modules"] = modules(case, config, compiled)
    results["objects"] = [scale(bench, replace(sizes, objects=count), config, ceiling_tflops) for count in objects]
    return results


def scale(bench: Bench, sizes: plan.MemorySizes, config: plan.FlashConfig, ceiling_tflops: float) -> dict[str, Any]:
    """Time and memory growth for one number of objects; the splits are chosen anew."""
    with recorded({"objects": sizes.objects}) as entry:
        case = make_case(bench, sizes)
        launches = case.launches(replace(config, splits=None))
        launch.run(launches)
        before = bench.allocated()
        entry["seconds"] = bench.seconds(lambda: launch.run(launches))
        entry["grown_bytes"] = bench.allocated() - before
        entry["splits"] = launches[1].grid[1]
        entry["tflops"] = case.flop(sizes.memory_width) / entry["seconds"] / 1e12
        entry["share_of_ceiling"] = entry["tflops"] / ceiling_tflops
    return entry
