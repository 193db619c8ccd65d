"""Tables and a plot of committed measurements, for the README and docs/notes/benchmarks.md.

    python -m pytest benchmarks/ --benchmark-only --benchmark-json out/bench.json     # measure
    python -m benchmarks.report --add out/bench.json                                  # one file per bundle and backend
    python -m benchmarks.report                                                       # write the texts and the plot

The text between the marks in the README is generated; a test fails when it is stale.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import accuracy_tables, tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "notes" / "benchmarks.md"
README = ROOT / "README.md"
NANO = ROOT / "docs" / "notes" / "nano.md"
ACCURACY = ("nano_accuracy.json", "nano_turns.json")
"""Results of `benchmarks.accuracy --json`: all kinds of sentences, and those that need several frames."""
PLOT = ROOT / "docs" / "images" / "benchmarks"
BEGIN, END = "<!-- made by python -m benchmarks.report -->", "<!-- end -->"
PREFIX, PEERS = "cpu-", "peers-"
"""Files of bundles, and of `bench_peers`."""
SHARED = ("machine", "bundle", "precision", "bundle_sha256")


def summarize(measured: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Convert pytest-benchmark's JSON to result files (name -> content): figures of each case without single rounds.

    Raises ValueError for a file without a case of this project.
    """
    results: dict[str, dict[str, Any]] = {}
    for case in measured["benchmarks"]:
        info = dict(case["extra_info"])
        if "bundle" not in info:  # kernels need no bundle, and say less on a CPU
            continue
        shared = {key: info.pop(key, None) for key in SHARED}
        shared["machine"] = dict(shared["machine"])
        command = re.sub(r"(?<=[ =])/\S*/", "", shared["machine"].pop("command"))  # without folders of the machine
        beside = shared["machine"]["backend"] == "peers"
        name = f"{PEERS}{shared['bundle']}" if beside else f"{PREFIX}{shared['bundle']}-{shared['machine']['backend']}"
        result = results.setdefault(f"{name}.json", {**shared, "date": measured["datetime"][:10], "cases": []})
        kept = {"name": case["name"].split("[")[0], **{key: case["stats"][key] for key in ("rounds", "median")}}
        result["cases"].append({**kept, "command": command, **info})
    if not results:
        raise ValueError("no case of this project in the file")
    return results


def load(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Load all measurements, by bundle; ONNX Runtime, which every installation has, before other backends."""
    found = [json.loads(file.read_text()) for file in folder.glob(f"{PREFIX}*.json")]
    return sorted(found, key=lambda m: (m["bundle"], m["machine"]["backend"] != "ort", m["machine"]["backend"]))


def load_peers(folder: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob(f"{PEERS}*.json"))]


def load_accuracy(folder: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads((folder / name).read_text()) for name in ACCURACY if (folder / name).exists()]


def replace_section(text: str, section: str) -> str:
    """Return `text` with the section between the marks replaced. Raises ValueError where the marks are missing."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest:
        raise ValueError(f"the marks {BEGIN} and {END} must be in the text once; restore them")
    return f"{head}{BEGIN}\n{section.strip()}\n{END}{tail}"


def texts(results: list[dict[str, Any]], accuracy: list[dict[str, Any]]) -> dict[Path, str]:
    """Content of every generated file."""
    return {
        PAGE: tables.page(results, load_peers()),
        README: replace_section(README.read_text(), tables.summary(results, accuracy, load_peers())),
        NANO: replace_section(NANO.read_text(), accuracy_tables.nano(accuracy)),
    }


def stale_files(results: list[dict[str, Any]], accuracy: list[dict[str, Any]]) -> list[str]:
    """Return the names of the generated files that differ from the results."""
    return [f.name for f, text in texts(results, accuracy).items() if not f.exists() or f.read_text() != text]


def add(files: Iterable[Path], note: str | None = None) -> list[Path]:
    """Summarize files into `RESULTS`; `note` describes special conditions of the measurement."""
    written = []
    for file in files:
        for name, result in summarize(json.loads(file.read_text())).items():
            target = RESULTS / name
            result |= {"note": note} if note else {}
            target.write_text(json.dumps(merge(target, result), indent=1) + "\n")
            written.append(target)
    return written


def merge(target: Path, new: dict[str, Any]) -> dict[str, Any]:
    """Replace the cases of the same kind in `target`, if bundle and machine are the same; keep its other cases."""
    if not target.exists():
        return new
    old = json.loads(target.read_text())
    if old["bundle_sha256"] != new["bundle_sha256"] or old["machine"]["cpu"] != new["machine"]["cpu"]:
        return new
    kinds = {(case["name"], case.get("pytorch")) for case in new["cases"]}
    rest = [case for case in old["cases"] if (case["name"], case.get("pytorch")) not in kinds]
    return new | {"cases": rest + new["cases"]}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="FILE", help="pytest-benchmark JSON to add")
    parser.add_argument("--note", help="special conditions of the measurement in --add")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a text is stale")
    options = parser.parse_args()
    for file in add(options.add, options.note):
        print(file)
    results, accuracy = load(), load_accuracy()
    if options.check:
        stale = stale_files(results, accuracy)
        raise SystemExit(f"stale: {', '.join(stale)}; run python -m benchmarks.report" if stale else 0)
    from . import plot

    made = texts(results, accuracy)
    for file, text in made.items():
        file.write_text(text)
    for file in (*made, *plot.draw(results, PLOT)):
        print(file)


if __name__ == "__main__":
    main()
