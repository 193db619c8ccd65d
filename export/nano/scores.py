"""J&F statistics: one record per object and clip, means with bootstrap intervals, per kind of sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from runtime.metrics import boundary_f, jaccard


@dataclass(frozen=True, slots=True)
class Record:
    """Scores of one object in one clip, each the mean over its frames."""

    clip: str
    text: str
    kind: str
    unseen: bool
    j: float
    f: float

    @property
    def jf(self) -> float:
        return (self.j + self.f) / 2


def score(predicted: np.ndarray, truth: np.ndarray, boundary: bool = True) -> tuple[float, float]:
    """Return mean J and F over the frames of one object, masks (T,H,W) bool. Without `boundary`, F repeats J."""
    j = float(np.mean(jaccard(predicted, truth)))
    return j, float(np.mean(boundary_f(predicted, truth))) if boundary else j


def bootstrap_interval(values: Sequence[float], groups: Sequence[str], draws: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean. Resamples whole groups (clips): their sentences are
    correlated."""
    if len(values) == 0:
        return float("nan"), float("nan")
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, counts = np.bincount(labels, np.asarray(values, float)), np.bincount(labels)
    picks = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def summarize(records: Sequence[Record]) -> dict[str, float | int | list[float]]:
    """Return count, J, F, J&F and its interval over `records`."""
    if not records:
        return {"n": 0}
    low, high = bootstrap_interval([r.jf for r in records], [r.clip for r in records])
    j, f = float(np.mean([r.j for r in records])), float(np.mean([r.f for r in records]))
    means = {"J": round(j, 4), "F": round(f, 4), "J&F": round((j + f) / 2, 4)}
    return {"n": len(records), **means, "interval": [round(low, 4), round(high, 4)]}


def paired_difference(base: Sequence[Record], other: Sequence[Record]) -> dict[str, float | int | list[float]] | None:
    """Return J&F of `other` minus that of `base`, with its interval; None if their sentences differ."""
    if [(r.clip, r.text, r.kind) for r in base] != [(r.clip, r.text, r.kind) for r in other]:
        return None
    differences = [b.jf - a.jf for a, b in zip(base, other, strict=True)]
    low, high = bootstrap_interval(differences, [r.clip for r in base])
    difference = round(float(np.mean(differences)), 4)
    return {"n": len(base), "difference": difference, "interval": [round(low, 4), round(high, 4)]}


def table(records: Iterable[Record]) -> dict[str, dict]:
    """Summarize all records, those of each kind, and those of seen and unseen pairs of noun and attribute."""
    records = list(records)
    out = {"all": summarize(records)}
    for kind in sorted({r.kind for r in records}):
        out[kind] = summarize([r for r in records if r.kind == kind])
    if any(r.unseen for r in records):
        out["unseen pairs"] = summarize([r for r in records if r.unseen])
        # only seen pairs of the same kinds, so that the comparison is not one of kinds
        kinds = {r.kind for r in records if r.unseen}
        out["seen pairs of those kinds"] = summarize([r for r in records if not r.unseen and r.kind in kinds])
    return out


def format_table(rows: dict[str, dict]) -> str:
    """Format a table for a terminal."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'n':>5}  {'J':>6}  {'F':>6}  {'J&F':>6}  95 % interval"]
    for name, row in rows.items():
        if row["n"]:
            means = "  ".join(f"{row[column]:6.3f}" for column in ("J", "F", "J&F"))
            low, high = row["interval"]
            lines.append(f"{name:{width}}  {row['n']:5}  {means}  {low:.3f} .. {high:.3f}")
    return "\n".join(lines)
