"""Three panels: time by number of sentences, by number of objects, and by stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .tables import Kept, cases

SAME = {"color": "0.7", "linestyle": ":", "linewidth": 1}
STAGES = 12
"""Bars per bundle at most: the longest."""


def draw(results: Sequence[Kept], file: Path) -> list[Path]:
    """Write `file` as PNG and SVG. Needs matplotlib (extra `report`)."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "samwise"  # equal data, equal file
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1, 1, 1.5), layout="constrained")
    _growth(left, results, "test_sentences", "sentences", "median")
    _growth(middle, results, "test_objects", "objects", "seconds_per_frame")
    left.set_title("a window of frames"), middle.set_title("a frame of SAM 2, full memory")
    _bars(right, results)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        figure.savefig(file.with_suffix(suffix), dpi=110, metadata=metadata)
        written.append(file.with_suffix(suffix))
    plt.close(figure)
    return written


def _growth(axes, results: Sequence[Kept], name: str, unit: str, key: str) -> None:
    for kept in results:
        found = sorted((c[unit], c[key]) for c in cases(kept, name))
        if len(found) > 1:
            counts, seconds = zip(*found)
            axes.plot(
                counts,
                [s / seconds[0] for s in seconds],
                marker="o",
                label=f"{kept['bundle']}, {kept['machine']['backend']}",
            )
            axes.plot(counts, counts, **SAME)
    axes.set_xlabel(unit), axes.set_ylabel("time / time of one"), axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(fontsize=8)


def _bars(axes, results: Sequence[Kept]) -> None:
    """Share of each stage in the sum of all, one bar per bundle."""
    shown = [kept for kept in results if cases(kept, "test_stage")]
    for row, kept in enumerate(shown):
        found = sorted(((c["p50"], c["stage"]) for c in cases(kept, "test_stage")), reverse=True)
        total, at = sum(seconds for seconds, _ in found), 0.0
        for i, (seconds, stage) in enumerate(found[:STAGES]):
            share = 100 * seconds / total
            axes.barh(row, share, left=at, color=f"C{i % 10}", edgecolor="white", height=0.6)
            if share > 7:
                axes.text(
                    at + share / 2, row, stage, ha="center", va="center", fontsize=7, rotation=90 if share < 20 else 0
                )
            at += share
    axes.set_yticks(
        range(len(shown)), [f"{kept['bundle']}\n{kept['machine']['backend']}" for kept in shown], fontsize=8
    )
    axes.set_xlabel("% of the time of all stages, each once"), axes.set_title("stages")
