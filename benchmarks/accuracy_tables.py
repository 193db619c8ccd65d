"""Markdown tables of nano's accuracy, from `benchmarks.accuracy --json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from export.nano.scores import Record, paired_difference

LATENCY = ("low latency", "clips of four", "clips of one frame")
"""Variants that give results before a whole clip is there."""

SCORES = ("", "n", "J", "F", "J&F", "95 %")


def score_row(name: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    low, high = row["interval"]
    return name, row["n"], f"{row['J']:.3f}", f"{row['F']:.3f}", f"**{row['J&F']:.3f}**", f"{low:.3f} .. {high:.3f}"


def difference(row: Mapping[str, Any]) -> str:
    """Paired difference to the first variant, with its interval."""
    if "against_first" not in row:
        return ""
    low, high = row["against_first"]["interval"]
    return f"{row['against_first']['difference']:+.3f} ({low:+.3f} .. {high:+.3f})"


def accuracy(measured: Mapping[str, Any]) -> str:
    """Render every variant, then the first one by kind of sentence."""
    variants = measured["variants"]
    every = [(*score_row(name, v["table"]["all"]), difference(v)) for name, v in variants.items()]
    first_name, one = next(iter(variants.items()))
    kinds = [score_row(kind, row) for kind, row in one["table"].items() if kind != "all" and row["n"]]
    of_kinds = f" of {', '.join(measured['kinds'])}" if measured.get("kinds") else ""
    return "\n\n".join(
        (
            f"{measured['clips']} clips{of_kinds}:",
            table((*SCORES, f"paired, against {first_name}"), every),
            f"By kind ({first_name}):",
            table(SCORES, kinds),
        )
    )


def latency(measured: Mapping[str, Any]) -> str:
    """Render the paired difference to the first variant of those with less latency, by kind of sentence."""
    variants = measured["variants"]
    records = {name: [Record(**row) for row in v["records"]] for name, v in variants.items()}
    first_name = next(iter(variants))
    kinds = Counter(record.kind for record in records[first_name])
    rows = []
    for kind in sorted(kinds):
        columns = []
        for name in LATENCY:
            pair = ([r for r in records[n] if r.kind == kind] for n in (first_name, name))
            columns.append(difference({"against_first": paired_difference(*pair)}))
        mean = variants[first_name]["table"][kind]["J&F"]
        rows.append((kind, kinds[kind], f"{mean:.3f}", *columns))
    return f"Less latency, by kind:\n\n{table(('', 'n', f'J&F, {first_name}', *LATENCY), rows)}"


def nano(measured: Sequence[Mapping[str, Any]]) -> str:
    """Render docs/notes/nano.md's section."""
    parts = [[accuracy(one), *([latency(one)] if set(LATENCY) <= set(one["variants"]) else [])] for one in measured]
    return "\n\n".join(chain.from_iterable(parts))


def nano_line(measured: Sequence[Mapping[str, Any]]) -> str:
    """Render one sentence for the README."""
    if not measured:
        return ""
    variants = measured[0]["variants"]
    names = [name for name in ("text", "shuffled sentences", "click", "box") if name in variants]
    scores = ", ".join(f"{name} {variants[name]['table']['all']['J&F']:.2f}" for name in names)
    return f"nano on {measured[0]['clips']} unseen clips, J&F: {scores} ([all of it](docs/notes/nano.md))."


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])
