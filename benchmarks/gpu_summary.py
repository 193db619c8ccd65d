"""Summary of `benchmarks.gpu_check` for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def summary(data: dict[str, Any]) -> str:
    """Return a line per configuration, section and target."""
    sections = data["sections"]
    lines = list(_memory_lines(sections.get("memory_attention", {})))
    for name, section in sections.items():
        if name.startswith("window") and "winner" in section:
            lines += _window_lines(name, section)
        elif name == "pipeline":
            lines += pipeline_lines(section)
        elif name in ("machine", "ceilings", "graph_gain", "flat_memory", "cubins") or name.startswith("p"):
            lines.append(f"  {name}: {json.dumps(section)[:300]}")
    for verdict in data["verdicts"]:
        met = "met    " if verdict["met"] else "NOT MET"
        lines.append(f"{met} {verdict['what']}: {verdict['measured']} (target {verdict['target']})")
    return "\n".join(lines)


def _rate(entry: dict[str, Any], detail: str = "") -> str:
    """Time and rate of an entry, or its error."""
    return entry.get("error") or f"{entry['seconds'] * 1e6:8.1f} us {detail}{entry['tflops']:6.1f} TFLOP/s"


def _memory_lines(section: dict[str, Any]) -> Iterator[str]:
    for entry in section.get("sweep", []):
        c = entry["config"]
        name = f"{c['block_m']}x{c['block_n']} warps {c['warps']} stages {c['stages']}" + " tma" * c["tma"]
        name += " specialized" * c["specialize"] + (f" {c['form']}" if c.get("form") else "")
        flash = "" if "error" in entry else f"(flash {entry['flash_seconds'] * 1e6:.1f}, splits {entry['splits']}) "
        yield f"  flash {name:48} {_rate(entry, flash)[:150]}"
    for name, entry in section.get("pytorch", {}).items():
        yield f"  PyTorch {name:12} {_rate(entry)[:150]}"
    for name, entry in section.get("modules", {}).items():
        yield f"  whole operation, {name:10} {entry.get('error') or '%.1f us' % (entry['seconds'] * 1e6)}"
    for entry in section.get("objects", []):
        grown = "" if "error" in entry else f", grown {entry['grown_bytes']} bytes"
        yield f"  objects {entry['objects']:3} {_rate(entry)}{grown}"


def _window_lines(name: str, section: dict[str, Any]) -> Iterator[str]:
    for entry in section["sweep"]:
        times = {k: v for k, v in entry.items() if isinstance(v, float) and (k == "seconds" or k.startswith("window"))}
        value = entry.get("error") or {k: round(v * 1e6, 1) for k, v in times.items()}
        yield f"  {name} {list(entry['config'].values())}: {str(value)[:150]}"
    yield f"  {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in section.items() if k.startswith("speedup"))


def pipeline_lines(section: dict[str, Any]) -> Iterator[str]:
    """Return a line per bundle, backend and number of objects, and per split stage."""
    entries = {
        f"  {bundle} {backend}": entry
        for bundle, backends in section.items()
        for backend, entry in (backends.items() if isinstance(backends, dict) else ())
    }
    for name, entry in entries.items():
        if not isinstance(entry, dict) or "stages" not in entry:
            yield f"{name}: {str(entry)[:150]}"
            continue
        for key, video in entry.items():
            if key.startswith("objects_"):
                times = f"{video['graphs_ms_per_frame']:.2f} ms per frame, graph gain {video['graph_gain']:.2f}"
                yield f"{name} {key}: {times}, grown {video['graphs_grown_bytes']} bytes"
        for stage, row in entry.get("split_stages", {}).get("stages", {}).items():
            times = f"kernel {row['kernel_seconds'] * 1e6:.1f} us, whole graph {row['whole_seconds'] * 1e6:.1f} us"
            yield f"{name} {stage}: {times}, gain {row['gain']:.2f}, relative error {row['relative_error']:.1e}"
