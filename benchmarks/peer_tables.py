"""Markdown tables of `bench_peers`: other implementations of SAM 2 beside this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .accuracy_tables import table
from .peers import OURS, PEERS, REFERENCE

TITLE = "Beside other implementations"
COLUMNS = (
    "implementation",
    "image, px",
    "s per frame",
    "times `transformers`' speed",
    "first mask, s",
    "peak memory, MB",
    "installed, MB",
    "IoU, worst frame",
    "mean",
)


def rows_of(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    return measured["cases"][0]["rows"]


def speed(measured: Mapping[str, Any], peer: str, side: int | None = None) -> float | None:
    """Divide the time of `transformers` by that of a peer, at full image size unless `side` is given."""
    rows = rows_of(measured)
    side = side or max(row["side"] for row in rows)
    seconds = {row["peer"]: row["seconds_per_frame"] for row in rows if row["side"] == side}
    return seconds[REFERENCE] / seconds[peer] if {REFERENCE, peer} <= seconds.keys() else None


def section(peers: Sequence[Mapping[str, Any]]) -> str:
    """Render the section of docs/notes/benchmarks.md; empty if nothing was measured."""
    parts = [f"## {TITLE}"] if peers else []
    for measured in peers:
        machine, case = measured["machine"], measured["cases"][0]
        names = ("onnxruntime", "openvino", "torch", "transformers", "sam2", "ultralytics")
        versions = ", ".join(f"{name} {machine[name]}" for name in names if machine.get(name))
        missing = "".join(f" Not measured: {PEERS[name].title} ({why})." for name, why in case["missing"].items())
        parts += [
            f"**{measured['bundle']}**, one click on the first of {case['frames']} frames, the same random weights and "
            "pixels, float32 unless said, each in a process of its own and in turn. First mask: from the start of the "
            "process. Installed: the packages with all that they require; PyTorch is its build for CPUs. IoU: with "
            f"`transformers` at the same image size. {machine['cpu']}, {machine['cores']} cores, {versions}, "
            f"{measured['date']}. `{case['command']}`.{missing}",
            table(COLUMNS, [_row(row, measured) for row in rows_of(measured)]),
        ]
    return "\n\n".join(parts)


def _row(row: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    title = PEERS[row["peer"]].title
    ratio = speed(measured, row["peer"], row["side"])
    return [
        f"**{title}**" if row["peer"] in OURS else title,
        str(row["side"]),
        f"{row['seconds_per_frame']:.3g}",
        "" if ratio is None else f"{ratio:.2f}x",
        f"{row['first_mask']:.3g}",
        str(row["peak_rss_mb"]),
        str(row["installed_mb"]),
        f"{row['worst_iou']:.4f}",
        f"{row['mean_iou']:.4f}",
    ]


def line(peers: Sequence[Mapping[str, Any]]) -> str:
    """Say for the README how much faster or slower each implementation is; empty if nothing was measured."""
    texts = []
    for measured in peers:
        ratios = {name: speed(measured, name) for name in PEERS if name != REFERENCE}
        parts = [f"{PEERS[name].title} {ratio:.2f}x" for name, ratio in ratios.items() if ratio is not None]
        frames = measured["cases"][0]["frames"]
        texts.append(f"{measured['bundle']}, {frames} frames: {', '.join(parts)}")
    link = f"docs/notes/benchmarks.md#{TITLE.lower().replace(' ', '-')}"
    return f"A click, speed over `transformers` in one run: {'; '.join(texts)} ([table]({link}))." if texts else ""
