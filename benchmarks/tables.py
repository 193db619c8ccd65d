"""Measurements as Markdown. Pure functions of the files in `benchmarks/results/`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

Kept = Mapping[str, Any]
LINK = "docs/benchmarks.md"
PYTORCH = {"eager": "eager", "compiled": "torch.compile", "bfloat16": "bfloat16 (autocast)"}
"""PyTorch's ways to measure against, by what `--pytorch` calls them."""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def cases(kept: Kept, name: str, **wanted: Any) -> list[Mapping[str, Any]]:
    """By what they were measured for: count of sentences or objects, stage."""
    found = [c for c in kept["cases"] if c["name"] == name and all(c.get(k) == v for k, v in wanted.items())]
    return sorted(found, key=lambda c: (c.get("sentences", 0), c.get("objects", 0), c.get("stage", "")))


def first(kept: Kept, name: str, key: str, **wanted: Any) -> Any:
    """The figure of the one case that fits, None where it was not measured."""
    found = [c[key] for c in cases(kept, name, **wanted) if key in c]
    return found[0] if found else None


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """Three significant digits, or an empty cell."""
    if value is None:
        return ""
    text = f"{value:.{digits}g}"
    return (f"{float(text):g}" if "e" not in text else f"{float(text):.0f}") + unit


def where(kept: Kept) -> str:
    m = kept["machine"]
    threads = f", {m['threads']} threads" if m.get("threads") else ""
    versions = [
        f"ONNX Runtime {m['onnxruntime']}",
        *([f"OpenVINO {m['openvino']}"] if m.get("openvino") else []),
        f"PyTorch {m['torch']}",
    ]
    return (
        f"{m['cpu']}, {m['cores']} cores{threads}, {', '.join(versions)}, "
        f"{m['matmul_gflops']:g} GFLOP/s in a large float32 product"
    )


def second_over_first(kept: Kept) -> float | None:
    """Seconds of the second sentence on a clip, or on a picture, over those of the first."""
    one, two = (first(kept, "test_sentences", "median", sentences=n) for n in (1, 2))
    if one is not None and two is not None:
        return (two - one) / one
    new, known = (
        first(kept, "test_first_sentence", "median"),
        first(kept, "test_further_sentences", "median", sentences=1),
    )
    return None if new is None or known is None else known / new


def pytorch_on_pictures(kept: Kept) -> float | None:
    """PyTorch's time over ours for a new picture with one sentence."""
    ours, theirs = first(kept, "test_first_sentence", "median"), first(kept, "test_torch_eager", "median", folded=False)
    return None if ours is None or theirs is None else theirs / ours


def peak_of_one(kept: Kept) -> float | None:
    """Resident MB of a process that followed one sentence or one object, and ran nothing bigger before."""
    found = [
        first(kept, "test_sentences", "peak_rss_mb", sentences=1),
        first(kept, "test_objects", "peak_rss_mb", objects=1),
        first(kept, "test_first_sentence", "peak_rss_mb"),
    ]
    return next((peak for peak in found if peak is not None), None)


def summary(results: Sequence[Kept], nano_measured: Sequence[Mapping[str, Any]] = ()) -> str:
    """The README's section. At least one result."""
    rows = []
    for kept in results:
        sentence, click = (
            first(kept, name, "frames_per_second", pytorch="eager") for name in ("test_sentence", "test_click")
        )
        faster = [
            first(kept, name, "pytorch_over_runtime", pytorch="eager") for name in ("test_sentence", "test_click")
        ]
        faster.append(pytorch_on_pictures(kept))
        rows.append(
            (
                f"{kept['bundle']} ({kept['precision']}){' *' * bool(kept.get('note'))}",
                kept["machine"]["backend"],
                number(sentence),
                number(click),
                " / ".join(number(x, 3, "x") for x in faster if x is not None),
                number(second_over_first(kept), 2),
                number(first(kept, "test_first_mask", "median"), 2, " s"),
                number(peak_of_one(kept), 4, " MB"),
            )
        )
    head = (
        "bundle",
        "backend",
        "frames/s, a sentence",
        "frames/s, a click",
        "PyTorch's time / ours",
        "second sentence / first",
        "command to first mask",
        "peak memory",
    )
    notes = sorted({kept["note"] for kept in results if kept.get("note")})
    return "\n".join(
        (
            table(head, rows),
            *(f"\n\\* {note}" for note in notes),
            "",
            f'On {where(results[0])}. "PyTorch\'s time": the same modules, eager, in the same '
            "process, alternating with ours (sentence / click). Peak memory: of a process that follows one sentence or "
            "object. `python -m pytest benchmarks/ --benchmark-only --engine BUNDLE [--checkpoint FILE]` measures it "
            f"again; every stage, sentences, objects, memory, with the command of each bundle: [{LINK}]({LINK}).",
            *(("", line) if (line := nano_line(nano_measured)) else ()),
        )
    )


def page(results: Sequence[Kept]) -> str:
    """docs/benchmarks.md, whole."""
    parts = [
        "# Benchmarks",
        "Made by `python -m benchmarks.report` from `benchmarks/results/cpu-*.json`; do not edit. Measured by",
        "```\npython -m pytest benchmarks/ --benchmark-only --engine engines/ --benchmark-json out/bench.json\n"
        "python -m benchmarks.report --add out/bench.json\n```",
        "for every bundle in `engines/` on every backend that is present. Official sizes take `--rounds 1` and `--windows 1`; "
        "`--checkpoint FILE` compares masks with PyTorch's and times the export; `--pytorch eager compiled bfloat16` adds "
        "`torch.compile` and autocast. The command of each bundle stands with it.",
        "![Seconds by number of sentences and objects, and by stage](images/benchmarks.png)",
    ]
    for kept in results:
        parts += [
            f"## {kept['bundle']}, {kept['machine']['backend']}",
            f"Precision {kept['precision']}, files `{kept['bundle_sha256']}`, {kept['date']}, {where(kept)}. "
            + "; ".join(f"`{command}`" for command in dict.fromkeys(c["command"] for c in kept["cases"]))
            + "."
            + (f" **{kept['note']}**" if kept.get("note") else ""),
            *(
                part
                for make in (against_pytorch, sentences, pictures, objects, memory, start, stages)
                if (part := make(kept))
            ),
        ]
    return "\n\n".join(parts) + "\n"


def against_pytorch(kept: Kept) -> str:
    rows = []
    for name, what in (("test_sentence", "a sentence"), ("test_click", "a click")):
        for case in cases(kept, name):
            rows.append(
                (
                    what,
                    PYTORCH[case["pytorch"]],
                    case["frames"],
                    number(median(case["runtime_seconds"])),
                    number(median(case["pytorch_seconds"])),
                    number(case["pytorch_over_runtime"], 3, "x"),
                    number(case.get("worst_iou"), 5),
                    number(case.get("mean_iou"), 5),
                )
            )
    return (
        rows
        and "**Beside PyTorch**, alternating in one process. IoU of the masks with each other where both had the same weights.\n\n"
        + table(("clip of", "PyTorch", "frames", "ours, s", "PyTorch, s", "ratio", "IoU, worst frame", "mean"), rows)
    )


def sentences(kept: Kept) -> str:
    rows = [
        (c["sentences"], number(c["median"]), number(c["per_sentence"]), number(c["frames_per_second"]))
        for c in cases(kept, "test_sentences")
    ]
    note = second_over_first(kept)
    return rows and (
        "**Sentences** on one window; what comes before the first adapter is shared"
        + (f": the second costs {number(note, 2)} of the first" if note else "")
        + ".\n\n"
    ) + table(("sentences", "s", "s per sentence", "frames/s"), rows)


def pictures(kept: Kept) -> str:
    """Sentences on single pictures, and PyTorch beside them."""
    rows = [("new, with one sentence", number(c["median"]), "") for c in cases(kept, "test_first_sentence")]
    rows += [
        (f"known, {c['sentences']} more", number(c["median"]), number(c["per_sentence"]))
        for c in cases(kept, "test_further_sentences")
    ]
    rows += [
        (f"new, with one sentence, in PyTorch{' with our folds' * c['folded']}", number(c["median"]), "")
        for c in cases(kept, "test_torch_eager")
    ]
    return rows and "**Sentences on a picture.**\n\n" + table(("picture", "s", "s per sentence"), rows)


def objects(kept: Kept) -> str:
    found = cases(kept, "test_objects")
    alone = next((c for c in found if c["objects"] == 1), {})

    def times(case: Mapping[str, Any], key: str) -> str:
        return number(case[key] / alone[key]) if alone.get(key) else ""

    rows = [
        (
            c["objects"],
            number(c["seconds_per_frame"]),
            number(c["seconds_of_objects"]),
            number(c["gflop_of_objects"]),
            times(c, "gflop_of_objects"),
            times(c, "seconds_of_objects"),
            number(c.get("further_over_own")),
        )
        for c in found
    ]
    return rows and (
        "**Objects** of SAM 2, full memory. Own: memory attention, decoder and memory encoder. Last column: time of each "
        "further object over that of these stages for one.\n\n"
    ) + table(
        ("objects", "s per frame", "s, own", "GFLOP, own", "arithmetic / one", "time / one", "further / own"), rows
    )


def memory(kept: Kept) -> str:
    rows = [[number(1000 * s) for s in c["seconds_by_frame"].values()] for c in cases(kept, "test_memory_fill")]
    heads = [list(c["seconds_by_frame"]) for c in cases(kept, "test_memory_fill")]
    return rows and "**Memory attention**, ms by frame number, while the memory fills.\n\n" + table(heads[0], rows)


def start(kept: Kept) -> str:
    rows = []
    if (seconds := first(kept, "test_load", "median")) is not None:
        rows.append(
            (f"load, verify {number(first(kept, 'test_load', 'megabytes'))} MB, one frame", number(seconds), "")
        )
    if (seconds := first(kept, "test_first_mask", "median")) is not None:
        rows.append(
            ("command to first mask", number(seconds), f"{first(kept, 'test_first_mask', 'peak_rss_of_command_mb')}")
        )
    if (seconds := first(kept, "test_export", "median")) is not None:
        rows.append(
            (
                "export from a checkpoint, every stage and a clip compared",
                number(seconds),
                f"{first(kept, 'test_export', 'peak_rss_of_command_mb')}",
            )
        )
    return rows and "**Start and export**\n\n" + table(("", "s", "peak memory, MB"), rows)


def stages(kept: Kept) -> str:
    rows = [
        (
            f"`{c['stage']}`",
            ", ".join(f"{k} {v}" for k, v in c["sizes"].items()),
            number(1000 * c["p50"]),
            number(1000 * c["p95"]),
            number(c["gflop"]),
            number(c.get("gflops")),
            number(c.get("of_matmul_peak"), 2),
        )
        for c in cases(kept, "test_stage")
    ]
    return rows and "**Stages** alone. Peak: of a large float32 matrix product on the same machine.\n\n" + table(
        ("stage", "sizes", "ms", "p95", "GFLOP", "GFLOP/s", "of peak"), rows
    )


# -- accuracy of nano, from `benchmarks.accuracy` ------------------------------------------------------------------------

SCORES = ("", "n", "J", "F", "J&F", "95 %")


def scored(name: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    low, high = row["interval"]
    return name, row["n"], f"{row['J']:.3f}", f"{row['F']:.3f}", f"**{row['J&F']:.3f}**", f"{low:.3f} .. {high:.3f}"


def change(row: Mapping[str, Any]) -> str:
    """Paired difference against the first variant, with its interval."""
    if not (paired := row.get("against_first")):
        return ""
    low, high = paired["interval"]
    return f"{paired['difference']:+.3f} ({low:+.3f} .. {high:+.3f})"


def accuracy(measured: Mapping[str, Any]) -> str:
    """Every variant, then the first one by kind of sentence."""
    variants = measured["variants"]
    every = [(*scored(name, v["table"]["all"]), change(v)) for name, v in variants.items()]
    first_name, one = next(iter(variants.items()))
    kinds = [scored(kind, row) for kind, row in one["table"].items() if kind != "all" and row["n"]]
    return "\n\n".join(
        (
            f"{measured['clips']} clips"
            + (f" of {', '.join(measured['kinds'])}" if measured.get("kinds") else "")
            + ":",
            table((*SCORES, f"paired, against {first_name}"), every),
            f"By kind ({first_name}):",
            table(SCORES, kinds),
        )
    )


def nano(measured: Sequence[Mapping[str, Any]]) -> str:
    """docs/nano.md's section."""
    return "\n\n".join(accuracy(one) for one in measured)


def nano_line(measured: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for the README."""
    if not measured:
        return ""
    variants = measured[0]["variants"]
    said = [
        f"{name} {variants[name]['table']['all']['J&F']:.2f}"
        for name in ("text", "shuffled sentences", "click", "box")
        if name in variants
    ]
    return f"nano on {measured[0]['clips']} unseen clips, J&F: {', '.join(said)} ([all of it](docs/nano.md))."
