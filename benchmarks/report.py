"""Tables and a plot out of committed measurements, for the README and docs/benchmarks.md.

    python -m pytest benchmarks/ --benchmark-only --benchmark-json out/bench.json       # measure
    python -m benchmarks.report --add out/bench.json                                    # keep: one file per bundle and backend
    python -m benchmarks.report                                                         # write the texts and the plot again

Nothing is typed in by hand: what stands between the marks in the README is made here, and a test says when it is stale.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
NANO = ROOT / "docs" / "nano.md"
ACCURACY = ("nano_accuracy.json", "nano_turns.json")
"""What `benchmarks.accuracy --json` wrote: all kinds of sentences, and those that only time can tell."""
PLOT = ROOT / "docs" / "images" / "benchmarks"
BEGIN, END = "<!-- made by python -m benchmarks.report -->", "<!-- end -->"
PREFIX = "cpu-"
SHARED = ("machine", "bundle", "precision", "bundle_sha256")


def condense(measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """pytest-benchmark's JSON -> file name -> what is kept of it: figures of each case, no single rounds.

    Raises ValueError for a file with no case of this project in it.
    """
    found: dict[str, dict[str, Any]] = {}
    for case in measured["benchmarks"]:
        info = dict(case["extra_info"])
        if "bundle" not in info:  # kernels need no bundle and say less on a CPU
            continue
        shared = {key: info.pop(key, None) for key in SHARED}
        shared["machine"] = dict(shared["machine"])
        # where files lay on the machine is nobody's affair
        command = re.sub(r"(?<=[ =])/\S*/", "", shared["machine"].pop("command"))
        name = f"{PREFIX}{shared['bundle']}-{shared['machine']['backend']}.json"
        kept = found.setdefault(name, {**shared, "date": measured["datetime"][:10], "cases": []})
        stats = case["stats"]
        kept["cases"].append(
            {
                "name": case["name"].split("[")[0],
                "rounds": stats["rounds"],
                "median": stats["median"],
                "command": command,
            }
            | info
        )
    if not found:
        raise ValueError("no case of this project in the file")
    return found


def load(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All kept measurements, by bundle; ONNX Runtime, which everyone has, before other backends."""
    found = [json.loads(file.read_text()) for file in folder.glob(f"{PREFIX}*.json")]
    return sorted(
        found, key=lambda kept: (kept["bundle"], kept["machine"]["backend"] != "ort", kept["machine"]["backend"])
    )


def load_accuracy(folder: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads((folder / name).read_text()) for name in ACCURACY if (folder / name).exists()]


def between(text: str, section: str) -> str:
    """`text` with what stands between the marks replaced. Raises ValueError where the marks are missing."""
    if text.count(BEGIN) != 1 or END not in text.split(BEGIN)[1]:
        raise ValueError(f"the marks {BEGIN} and {END} are not in the text")
    head, rest = text.split(BEGIN)
    return head + BEGIN + "\n" + section.strip() + "\n" + END + rest.split(END, 1)[1]


def texts(results: list[dict[str, Any]], accuracy: list[dict[str, Any]]) -> dict[Path, str]:
    """Every file that is made here, whole."""
    return {
        PAGE: tables.page(results),
        README: between(README.read_text(), tables.summary(results, accuracy)),
        NANO: between(NANO.read_text(), tables.nano(accuracy)),
    }


def stale(results: list[dict[str, Any]], accuracy: list[dict[str, Any]]) -> list[str]:
    """Names of the files whose text is not what the results say."""
    return [
        file.name for file, text in texts(results, accuracy).items() if not file.exists() or file.read_text() != text
    ]


def keep(files: Iterable[Path], note: str | None = None) -> list[Path]:
    """Condense files into `RESULTS`; `note` says what a reader must know of how they were measured."""
    written = []
    for file in files:
        for name, kept in condense(json.loads(file.read_text())).items():
            target = RESULTS / name
            kept |= {"note": note} if note else {}
            target.write_text(json.dumps(merge(target, kept), indent=1) + "\n")
            written.append(target)
    return written


def merge(target: Path, kept: dict[str, Any]) -> dict[str, Any]:
    """New cases replace old ones of the same kind, if bundle and machine are the same; other old ones stay."""
    if not target.exists():
        return kept
    old = json.loads(target.read_text())
    if old["bundle_sha256"] != kept["bundle_sha256"] or old["machine"]["cpu"] != kept["machine"]["cpu"]:
        return kept

    def kind(case: Mapping[str, Any]) -> tuple[str, str | None]:
        return case["name"], case.get("pytorch")

    new = {kind(case) for case in kept["cases"]}
    return kept | {"cases": [case for case in old["cases"] if kind(case) not in new] + kept["cases"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="tables and a plot from measurements"
    )
    parser.add_argument(
        "--add", type=Path, nargs="+", default=[], metavar="FILE", help="JSON of pytest-benchmark to keep"
    )
    parser.add_argument("--note", help="what a reader must know of the files of --add")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a text is stale")
    options = parser.parse_args()
    for file in keep(options.add, options.note):
        print(file)
    results, accuracy = load(), load_accuracy()
    if options.check:
        old = stale(results, accuracy)
        raise SystemExit(f"stale: {', '.join(old)}; run python -m benchmarks.report" if old else 0)
    from . import plot

    made = texts(results, accuracy)
    for file, text in made.items():
        file.write_text(text)
    for file in (*made, *plot.draw(results, PLOT)):
        print(file)


if __name__ == "__main__":
    main()
