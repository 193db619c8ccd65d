"""Plot of three panels: time by number of sentences, by number of objects, and by stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .tables import Measurement, cases

MAX_STAGES = 12
"""Stages shown per bundle: the slowest ones."""


def draw(results: Sequence[Measurement], file: Path) -> list[Path]:
    """Write `file` as PNG and SVG. Needs matplotlib (extra `report`)."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "samwise"  # equal data, equal file
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1, 1, 1.5), layout="constrained")
    _growth(left, results, "test_sentences", "sentences", "median")
    _growth(middle, results, "test_objects", "objects", "seconds_per_frame")
    left.set_title("a window of frames")
    middle.set_title("a frame of SAM 2, full memory")
    _bars(right, [measured for measured in results if cases(measured, "test_stage")])
    file.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        figure.savefig(file.with_suffix(suffix), dpi=110, metadata=metadata)
    plt.close(figure)
    return [file.with_suffix(".png"), file.with_suffix(".svg")]


def _growth(axes, results: Sequence[Measurement], name: str, unit: str, key: str) -> None:
    for measured in results:
        found = sorted((c[unit], c[key]) for c in cases(measured, name))
        if len(found) > 1:
            counts, seconds = zip(*found, strict=True)
            label = f"{measured['bundle']}, {measured['machine']['backend']}"
            axes.plot(counts, [s / seconds[0] for s in seconds], marker="o", label=label)
            axes.plot(counts, counts, color="0.7", linestyle=":", linewidth=1)
    axes.set(xlabel=unit, ylabel="time / time of one")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(fontsize=8)


def _bars(axes, results: Sequence[Measurement]) -> None:
    """Share of each stage in the sum of all, one bar per bundle."""
    for row, measured in enumerate(results):
        found = sorted(((c["p50"], c["stage"]) for c in cases(measured, "test_stage")), reverse=True)
        total, at = sum(seconds for seconds, _ in found), 0.0
        for i, (seconds, stage) in enumerate(found[:MAX_STAGES]):
            share = 100 * seconds / total
            axes.barh(row, share, left=at, color=f"C{i % 10}", edgecolor="white", height=0.6)
            if share > 7:
                angle = 90 if share < 20 else 0
                axes.text(at + share / 2, row, stage, ha="center", va="center", fontsize=7, rotation=angle)
            at += share
    labels = [f"{measured['bundle']}\n{measured['machine']['backend']}" for measured in results]
    axes.set_yticks(range(len(results)), labels, fontsize=8)
    axes.set(xlabel="% of the time of all stages, each once", title="stages")
