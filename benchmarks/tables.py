"""Markdown tables of measurements: pure functions of the files in `benchmarks/results/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from . import peer_tables
from .accuracy_tables import nano_line, table

Measurement = Mapping[str, Any]
"""Kept figures of one bundle on one backend."""
Case = Mapping[str, Any]
LINK = "docs/notes/benchmarks.md"
PYTORCH = {"eager": "eager", "compiled": "torch.compile", "bfloat16": "bfloat16 (autocast)"}
"""Value of `--pytorch` -> title of that PyTorch variant."""


def cases(measured: Measurement, name: str, **wanted: Any) -> list[Case]:
    """Return the cases of one benchmark, by number of sentences or objects, or by stage."""
    found = [c for c in measured["cases"] if c["name"] == name and all(c.get(k) == v for k, v in wanted.items())]
    return sorted(found, key=lambda c: (c.get("sentences", 0), c.get("objects", 0), c.get("stage", "")))


def first(measured: Measurement, name: str, key: str, **wanted: Any) -> Any:
    """Return a figure of the first case that has it, None if it was not measured."""
    return next((c[key] for c in cases(measured, name, **wanted) if key in c), None)


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """Three significant digits without an exponent, or an empty cell."""
    if value is None:
        return ""
    text = f"{value:.{digits}g}"
    return (f"{float(text):g}" if "e" not in text else f"{float(text):.0f}") + unit


def machine(measured: Measurement) -> str:
    """Describe the machine and the versions of the libraries."""
    m = measured["machine"]
    threads = f", {m['threads']} threads" if m.get("threads") else ""
    openvino = f"OpenVINO {m['openvino']}, " if m.get("openvino") else ""
    return (
        f"{m['cpu']}, {m['cores']} cores{threads}, ONNX Runtime {m['onnxruntime']}, {openvino}PyTorch {m['torch']}, "
        f"{m['matmul_gflops']:g} GFLOP/s in a large float32 product"
    )


# -- README


def second_over_first(measured: Measurement) -> float | None:
    """Divide seconds of the second sentence on a clip, or on an image, over those of the first."""
    one, two = (first(measured, "test_sentences", "median", sentences=n) for n in (1, 2))
    if one is not None and two is not None:
        return (two - one) / one
    new = first(measured, "test_first_sentence", "median")
    known = first(measured, "test_further_sentences", "median", sentences=1)
    if new is None or known is None:
        return first(measured, "test_concepts", "second_over_first")
    return known / new


def over_pytorch(measured: Measurement) -> str:
    """Divide PyTorch's time by ours: of a sentence and a click on a clip, and of a new image with one sentence."""
    ratios = [first(measured, n, "pytorch_over_runtime", pytorch="eager") for n in ("test_sentence", "test_click")]
    ours = first(measured, "test_first_sentence", "median")
    theirs = first(measured, "test_torch_eager", "median", folded=False)
    ratios.append(None if ours is None or theirs is None else theirs / ours)
    ratios.append(first(measured, "test_concepts", "pytorch_over_runtime"))
    return " / ".join(number(ratio, 3, "x") for ratio in ratios if ratio is not None)


def peak_of_one(measured: Measurement) -> float | None:
    """Resident MB of a process that followed one sentence or one object, and ran nothing larger before."""
    key = "peak_rss_mb"
    one = first(measured, "test_sentences", key, sentences=1), first(measured, "test_objects", key, objects=1)
    return next((peak for peak in (*one, first(measured, "test_first_sentence", key)) if peak is not None), None)


OVERVIEW: Mapping[str, Callable[[Measurement], str]] = {
    "bundle": lambda m: f"{m['bundle']} ({m['precision']}){' *' * bool(m.get('note'))}",
    "backend": lambda m: m["machine"]["backend"],
    "text, frames/s": lambda m: number(first(m, "test_sentence", "frames_per_second", pytorch="eager")),
    "click, frames/s": lambda m: number(first(m, "test_click", "frames_per_second", pytorch="eager")),
    "times PyTorch's speed": over_pytorch,
    "second sentence / first": lambda m: number(second_over_first(m), 2),
    "command to first mask": lambda m: number(first(m, "test_first_mask", "median"), 2, " s"),
    "peak memory": lambda m: number(peak_of_one(m), 4, " MB"),
}
SUMMARY = ("bundle", "text, frames/s", "click, frames/s", "times PyTorch's speed", "peak memory")
"""Columns of the README, of those above."""
REPEATED = "-synthetic"
"""End of the names of bundles that repeat another one's measurement; the README has one row for both, with a note."""


def overview(results: Sequence[Measurement], columns: Sequence[str] = tuple(OVERVIEW)) -> str:
    """Render one row per bundle and backend."""
    return table(columns, [[OVERVIEW[column](measured) for column in columns] for measured in results])


def summary(
    results: Sequence[Measurement], nano_measured: Sequence[Mapping[str, Any]] = (), peers: Sequence[Measurement] = ()
) -> str:
    """Render the README's section: the default backend only. At least one result."""
    default = [measured for measured in results if measured["machine"]["backend"] == "ort"] or results
    default = [measured for measured in default if not measured["bundle"].endswith(REPEATED)]
    notes = [f"{measured['bundle']}: {measured['note']}" for measured in default if measured.get("note")]
    lines = filter(None, (peer_tables.line(peers), nano_line(nano_measured)))
    return "\n".join(
        (
            overview(default, SUMMARY),
            *(f"\n\\* {note}" for note in notes),
            "",
            f"On {machine(results[0])}. PyTorch: the same modules, eager, alternating with ours in one process "
            f"(text / click). Every backend, stage and number of objects, with the commands: [benchmarks]({LINK}).",
            *(part for line in lines for part in ("", line)),
        )
    )


# -- docs/notes/benchmarks.md


Cell = Callable[[Case, Measurement], str]


class Section(NamedTuple):
    """A table of one or more benchmarks under a paragraph; `columns`: title -> figure of a case, or its cell."""

    benchmarks: tuple[str, ...]
    paragraph: str | Callable[[Measurement], str]
    columns: Mapping[str, str | Cell]

    def __call__(self, measured: Measurement) -> str:
        """Render as Markdown; empty if none of the benchmarks was run."""
        found = [case for name in self.benchmarks for case in cases(measured, name)]
        if not found:
            return ""
        rows = [[self._cell(column, case, measured) for column in self.columns.values()] for case in found]
        paragraph = self.paragraph if isinstance(self.paragraph, str) else self.paragraph(measured)
        return f"{paragraph}\n\n{table(list(self.columns), rows)}"

    @staticmethod
    def _cell(column: str | Cell, case: Case, measured: Measurement) -> str:
        if not isinstance(column, str):
            return column(case, measured)
        value = case.get(column)
        return str(value) if isinstance(value, int) else number(value)


def sentences_paragraph(measured: Measurement) -> str:
    note = second_over_first(measured)
    cost = f": the second costs {number(note, 2)} of the first" if note else ""
    return f"**Sentences** on one window; the trunk before the first adapter is shared{cost}."


def concepts_paragraph(measured: Measurement) -> str:
    """Say what was measured, and what limits it."""
    trunk, seconds = (first(measured, "test_concepts", key) for key in ("trunk_gflop", "trunk_seconds"))
    rate = measured["machine"]["matmul_gflops"]
    return (
        "**Concepts** on a new frame, and a second one on the same frame, beside transformers' Sam3Model (eager) with "
        "random weights of the same sizes; scores and masks beside ONNX Runtime's in float32. What limits: the "
        "products of the trunk are "
        f"{number(trunk / 1000)} TFLOP, {number(trunk / rate)} s at the rate of a large product here; the trunk takes "
        f"{number(seconds)} s, {trunk / seconds / rate:.0%} of that rate."
    )


def nth(key: str, index: int) -> Cell:
    """Cell of one of several figures, empty where it was not measured."""
    return lambda case, _: number(next(iter(case[key][index:]), None))


def label(case: Case, _: Measurement) -> str:
    """First column of the tables whose rows are different benchmarks."""
    return {
        "test_sentence": "a sentence",
        "test_click": "a click",
        "test_four_clicks": "four clicked objects",
        "test_first_sentence": "new, with one sentence",
        "test_further_sentences": f"known, {case.get('sentences')} more",
        "test_torch_eager": f"new, with one sentence, in PyTorch{' with our folds' * bool(case.get('folded'))}",
        "test_load": f"load, verify {number(case.get('megabytes'))} MB, one frame",
        "test_first_mask": "command to first mask",
        "test_export": "export from a checkpoint, every stage and a clip compared",
    }[case["name"]]


def over_one(key: str) -> Cell:
    """Ratio of a figure to that of one object."""

    def cell(case: Case, measured: Measurement) -> str:
        one = first(measured, "test_objects", key, objects=1)
        return number(case[key] / one) if one else ""

    return cell


def memory(measured: Measurement) -> str:
    """Time of memory attention by frame."""
    seconds = [case["seconds_by_frame"] for case in cases(measured, "test_memory_fill")]
    rows = [[number(1000 * s) for s in by_frame.values()] for by_frame in seconds]
    title = "**Memory attention**, ms by frame number, while the memory fills.\n\n"
    return title + table(list(seconds[0]), rows) if seconds else ""


SECTIONS: tuple[Section | Callable[[Measurement], str], ...] = (
    Section(
        ("test_sentence", "test_click", "test_four_clicks"),
        "**Beside PyTorch**, alternating in one process. "
        "IoU of the masks with each other where both had the same weights.",
        {
            "clip of": label,
            "PyTorch": lambda case, _: PYTORCH[case["pytorch"]],
            "frames": "frames",
            "ours, s": lambda case, _: number(median(case["runtime_seconds"])),
            "PyTorch, s": lambda case, _: number(median(case["pytorch_seconds"])),
            "ratio": lambda case, _: number(case["pytorch_over_runtime"], 3, "x"),
            "IoU, worst frame": lambda case, _: number(case.get("worst_iou"), 5),
            "mean": lambda case, _: number(case.get("mean_iou"), 5),
        },
    ),
    Section(
        ("test_sentences",),
        sentences_paragraph,
        {"sentences": "sentences", "s": "median", "s per sentence": "per_sentence", "frames/s": "frames_per_second"},
    ),
    Section(
        ("test_first_sentence", "test_further_sentences", "test_torch_eager"),
        "**Sentences on an image.**",
        {"image": label, "s": "median", "s per sentence": "per_sentence"},
    ),
    Section(
        ("test_concepts",),
        concepts_paragraph,
        {
            "ours, s": nth("runtime_seconds", 0),
            "second concept": nth("runtime_seconds", 1),
            "second / first": lambda case, _: number(case.get("second_over_first"), 2),
            "PyTorch, s": nth("pytorch_seconds", 0),
            "its second": nth("pytorch_seconds", 1),
            "ratio": lambda case, _: number(case["pytorch_over_runtime"], 3, "x"),
            "score difference": lambda case, _: number(case.get("score_difference"), 2),
            "IoU, worst mask": lambda case, _: number(case.get("worst_iou"), 4),
            "mean": lambda case, _: number(case.get("mean_iou"), 4),
        },
    ),
    Section(
        ("test_objects",),
        "**Objects** of SAM 2, full memory. Own: memory attention, decoder and memory encoder. "
        "Last column: time of each further object over that of these stages for one.",
        {
            "objects": "objects",
            "s per frame": "seconds_per_frame",
            "s, own": "seconds_of_objects",
            "GFLOP, own": "gflop_of_objects",
            "arithmetic / one": over_one("gflop_of_objects"),
            "time / one": over_one("seconds_of_objects"),
            "further / own": "further_over_own",
        },
    ),
    memory,
    Section(
        ("test_load", "test_first_mask", "test_export"),
        "**Start and export**",
        {"": label, "s": "median", "peak memory, MB": "peak_rss_of_command_mb"},
    ),
    Section(
        ("test_stage",),
        "**Stages** alone. Peak: of a large float32 matrix product on the same machine.",
        {
            "stage": lambda case, _: f"`{case['stage']}`",
            "sizes": lambda case, _: ", ".join(f"{k} {v}" for k, v in case["sizes"].items()),
            "ms": lambda case, _: number(1000 * case["p50"]),
            "p95": lambda case, _: number(1000 * case["p95"]),
            "GFLOP": "gflop",
            "GFLOP/s": "gflops",
            "of peak": lambda case, _: number(case.get("of_matmul_peak"), 2),
        },
    ),
)


def page(results: Sequence[Measurement], peers: Sequence[Measurement] = ()) -> str:
    """Render docs/notes/benchmarks.md."""
    parts = [
        "# Benchmarks",
        "Made by `python -m benchmarks.report` from `benchmarks/results/cpu-*.json`; do not edit. Measured by",
        "```\npython -m pytest benchmarks/ --benchmark-only --engine engines/ --benchmark-json out/bench.json\n"
        "python -m benchmarks.report --add out/bench.json\n```",
        "for every bundle in `engines/` on every backend that is present. Official sizes take `--rounds 1` and "
        "`--windows 1`; `--checkpoint FILE` compares masks with PyTorch's and times the export; "
        "`--pytorch eager compiled bfloat16` adds `torch.compile` and autocast. "
        "The command of each bundle stands with it.",
        "![Seconds by number of sentences and objects, and by stage](../images/benchmarks.png)",
        overview(results, [name for name, cell in OVERVIEW.items() if any(map(cell, results))]),
        *filter(None, (peer_tables.section(peers),)),
    ]
    for measured in results:
        commands = "; ".join(f"`{command}`" for command in dict.fromkeys(c["command"] for c in measured["cases"]))
        note = f" **{measured['note']}**" if measured.get("note") else ""
        parts += [
            f"## {measured['bundle']}, {measured['machine']['backend']}",
            f"Precision {measured['precision']}, files `{measured['bundle_sha256']}`, {measured['date']}, "
            f"{machine(measured)}. {commands}.{note}",
            *filter(None, (section(measured) for section in SECTIONS)),
        ]
    return "\n\n".join(parts) + "\n"
