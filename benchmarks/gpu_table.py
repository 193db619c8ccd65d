"""Targets and the one table of `benchmarks.gpu_check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Any]]
"""Section -> what it stored."""

BASE_GFLOP = 1041.0
"""Products of SAMWISE base+ per frame with one sentence and full memory: trunk 619, adapters 31, memory attention 376,
decoder and memory encoder 15."""

MODES = ("plain", "graphs", "kernels")
TARGETS = {
    "nano_least_iou": 0.97,
    "clicks_least_iou": 0.97,
    "base_over_pytorch_eager": 5.0,
    "base_over_torch_compile": 1.5,
    "memory_attention_over_sdpa": 1.3,
    "memory_attention_share_of_ceiling": 0.5,
    "window_attention_over_eager": 2.0,
}


def get(results: Mapping[str, Any], *path: str) -> Any:
    """Return the value at a path of keys, None where one of them is missing."""
    value: Any = results
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def least_iou(results: Results, task: str) -> float | None:
    """Return the least IoU of any frame in any mode, None unless all modes were compared, twice each."""
    found = [get(results, f"{task}_{mode}", turn, "least_iou") for mode in MODES for turn in ("first", "second")]
    return None if None in found else min(found)


def base_ms(results: Results) -> float | None:
    """Return the milliseconds per frame of base+ in the fastest mode."""
    found = [get(results, f"base_{mode}", "video", "ms_per_frame") for mode in (*MODES, "default")]
    return min((ms for ms in found if ms), default=None)


def windows(results: Results) -> dict[str, Any]:
    """Return the measurements of window attention by size: those of the sweep where it has come to them."""
    found = {}
    for section in ("shipped_kernels", "sweep_windows"):
        entries = results.get(section, {})
        found |= {n: entry for n, entry in entries.items() if n.startswith("window_attention") and "winner" in entry}
    return found


def verdicts(results: Results) -> list[dict[str, Any]]:
    """Compare measurements with the targets; a missing measurement does not meet its target."""
    gains = [w.get("speedup_over_eager") for w in windows(results).values()]
    memory = get(results, "shipped_kernels", "memory_attention") or {}
    measured = {
        "nano_least_iou": least_iou(results, "nano"),
        "clicks_least_iou": least_iou(results, "clicks"),
        "base_over_pytorch_eager": ratio(get(results, "pytorch_eager", "video", "ms_per_frame"), base_ms(results)),
        "base_over_torch_compile": ratio(get(results, "pytorch_compiled", "video", "ms_per_frame"), base_ms(results)),
        "memory_attention_over_sdpa": memory.get("speedup_over_fastest_pytorch"),
        "memory_attention_share_of_ceiling": memory.get("share_of_ceiling"),
        "window_attention_over_eager": min(gains, default=None) if None not in gains else None,
    }
    return [
        {"what": name, "target": target, "measured": value, "met": value is not None and value >= target}
        for name, target in TARGETS.items()
        for value in (measured[name],)
    ]


HEADER = ("", "plain", "graphs", "kernels", "PyTorch eager", "torch.compile", "limit", "IoU")


def rows(results: Results) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table: times of ours in each mode, of PyTorch, and the limit of the device."""
    ceiling = max((get(results, "ceilings", n) or 0.0 for n in ("fp16_tflops", "bf16_tflops")), default=0.0)
    for task, what in (("nano", "nano, sentences"), ("clicks", "nano, clicks")):
        times = [get(results, f"{task}_{mode}", "second", "ms_per_frame") for mode in MODES]
        yield (f"{what}, ms per frame", *map(_number, times), "", "", "", _number(least_iou(results, task)))
    times = [get(results, f"base_{mode}", "video", "ms_per_frame") for mode in MODES]
    theirs = [get(results, f"pytorch_{how}", "video", "ms_per_frame") for how in ("eager", "compiled")]
    limit = BASE_GFLOP / ceiling if ceiling else None  # GFLOP over TFLOP/s is milliseconds
    overlap = [get(results, f"base_{mode}", "iou_to_plain") for mode in MODES[1:]]
    known = [iou for iou in overlap if iou is not None]
    yield ("base+, ms per frame", *map(_number, (*times, *theirs, limit, min(known, default=None))))
    for how, section, video in (
        ("default", "base_default", "video"),
        ("frames ahead", "base_ahead", "video"),
        ("frames and clips ahead", "base_ahead", "video_and_clip"),
    ):
        ms = get(results, section, video, "ms_per_frame")
        yield (f"base+, {how}, ms per frame", "", "", _number(ms), *[""] * 4)
    for section, what in (("objects", "objects"), ("streams", "streams")):
        for name, entry in results.get(section, {}).items():
            if name.startswith(what) and isinstance(entry, Mapping):
                count = name.rpartition("_")[2]
                yield (f"base+, {count} {what}, ms per frame", "", "", _number(entry["ms_per_frame"]), *[""] * 4)
    yield from _kernel_rows(results, ceiling)


def _kernel_rows(results: Results, ceiling: float) -> Iterator[tuple[str, ...]]:
    memory = get(results, "shipped_kernels", "memory_attention") or {}
    if "winner" in memory:
        eager = min((e["seconds"] for e in memory["pytorch"].values() if "seconds" in e), default=None)
        compiled = get(results, "compiled_modules", "memory_attention", "compiled", "seconds")
        ours = memory["winner"]["seconds"]
        limit = ours * memory["winner"]["tflops"] / ceiling if ceiling else None
        cells = (_micro(ours), _micro(eager), _micro(compiled), _micro(limit))
        yield ("memory attention (PyTorch: SDPA), us", "", "", *cells, "")
    for name, entry in windows(results).items():
        compiled = get(results, "compiled_modules", name, "compiled", "seconds")
        cells = (_micro(entry["winner"]["seconds"]), _micro(get(entry, "eager", "seconds")), _micro(compiled))
        yield (f"{name.replace('_', ' ')}, us", "", "", *cells, "", "")


def split_stage_lines(results: Results) -> Iterator[str]:
    """Yield a line per split stage: the kernels beside the whole graph."""
    for stage, row in (get(results, "split_stages", "split_stages", "stages") or {}).items():
        times = f"kernel {row['kernel_seconds'] * 1e6:.1f} us, whole graph {row['whole_seconds'] * 1e6:.1f} us"
        yield f"{stage}: {times}, gain {row['gain']:.2f}, relative error {row['relative_error']:.1e}"


def sweep_lines(results: Results) -> Iterator[str]:
    """Yield a line per configuration of the flash launch that was timed, or its error."""
    for entry in (e for name, found in results.items() if name.startswith("sweep_") for e in found.get("sweep", ())):
        c = entry["config"]
        name = f"{c['block_m']}x{c['block_n']} warps {c['warps']} stages {c['stages']}" + " tma" * c["tma"]
        name += " specialized" * c["specialize"]
        rate = "error" in entry or f"{entry['seconds'] * 1e6:8.1f} us {entry['tflops']:6.1f} TFLOP/s"
        yield f"flash {name:36} {entry['error'][:150] if rate is True else rate}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _micro(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:.0f}"


def table(report: Mapping[str, Any]) -> str:
    """Return the table, what did not run with the reason, and the targets."""
    results = {name: entry.get("result", {}) for name, entry in report["sections"].items()}
    lines = [HEADER, *(row for row in rows(results) if any(row[1:]))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    text += [*split_stage_lines(results), *sweep_lines(results)]
    for name, entry in report["sections"].items():
        if entry["status"] != "done":
            detail = entry.get("reason") or ", ".join(entry.get("result", {}).get("left_out", []))
            text.append(f"{entry['status']} {name}: {detail[:300]}")
    for verdict in report.get("verdicts", []):
        met = "met    " if verdict["met"] else "NOT MET"
        text.append(f"{met} {verdict['what']}: {_number(verdict['measured']) or 'not measured'} ({verdict['target']})")
    return "\n".join(text)
