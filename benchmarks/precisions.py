"""J&F and speed of precisions and backends on a CPU, measured on the same clips, in turn, in one process.

    python -m benchmarks.precisions                               # the weights of engines/nano
    python -m benchmarks.precisions --checkpoint build/nano/run/nano.pth --tokenizer build/nano/tokenizer.json

Bundles of these weights in each of PRECISIONS are exported into `--engines` if they are missing; without a checkpoint
the weights are those in the graphs of the shipped half bundle, and no clip is compared with PyTorch. Each sentence is
compared with the fp32 bundle on ONNX Runtime: difference of J&F with a 95 % bootstrap interval over clips, IoU with its
masks, CPU seconds of the whole pipeline at one thread each, alternating clip by clip. A stopped run continues. The
table is written to docs/notes/cpu.md, between its marks, if the results go to the committed file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

import runtime
from export.bundle import export_bundle
from export.graph_weights import load_weights
from export.models.samwise import Samwise
from export.nano import scores
from export.nano.config import SIZES
from export.nano.scores import Record
from export.networks import base
from export.networks.base import ExportSource
from runtime.backends import autotune
from runtime.bundle.bundle import Bundle, choose
from runtime.metrics import clip_jaccard

from . import tables
from .accuracy import Ablation, sentences
from .datasets import Case, nano

NETWORK = "samwise+sam2"
PRECISIONS = ("fp32", "int8", "int8-weights", "int4-weights")
RESULT = Path("benchmarks/results/nano_precisions.json")
DOCUMENT = Path("docs/notes/cpu.md")
MARKS = ("<!-- table: python -m benchmarks.precisions -->", "<!-- end of table -->")


@dataclass(frozen=True, slots=True)
class Configuration:
    """A bundle, by the key of `bundles`, on a backend."""

    bundle: str
    backend: str
    libraries: tuple[str, ...]


REFERENCE = "fp32"
CONFIGURATIONS: Mapping[str, Configuration] = {
    REFERENCE: Configuration("fp32", "ort", ("onnxruntime",)),
    "fp16, as shipped": Configuration("shipped", "ort", ("onnxruntime",)),
    **{name: Configuration(name, "ort", ("onnxruntime",)) for name in PRECISIONS[1:]},
    "openvino": Configuration("fp32", "openvino", ("openvino",)),
    "openvino-bf16": Configuration("fp32", "openvino-bf16", ("openvino",)),
}


def bundles(options: argparse.Namespace) -> dict[str, Bundle]:
    """Return the bundles by key; export those that are missing or have other weights. Raises BundleError, UserError."""
    found = {"shipped": choose(options.shipped)}
    source = None
    for precision in PRECISIONS:
        name = f"nano-{precision}"
        if options.checkpoint:
            if not _of_these_weights(options.engines / name, options.checkpoint):
                _export(options, name, precision)
        elif not (options.engines / name / "manifest.json").exists():
            source = source or recovered(found["shipped"])
            _export_recovered(source, found["shipped"], options, name, precision)
        found[precision] = choose(options.engines / name)
    weights = {b.manifest.provenance.get("checkpoint_sha256") for b in found.values()}
    if len(weights) > 1:
        print(f"note: {options.shipped} and the bundles of {options.engines} are of different weights", file=sys.stderr)
    return found


def _export(options: argparse.Namespace, name: str, precision: str) -> None:
    command = [
        *(sys.executable, "-m", "export", NETWORK, "--checkpoint", str(options.checkpoint)),
        *("--name", name, "--precision", precision, "--out", str(options.engines)),
        *("--threads", str(options.export_threads), "--tokenizer", str(options.tokenizer)),
    ]
    print("$ python", *command[1:], flush=True)
    if subprocess.run(command).returncode:
        raise runtime.UserError(f"the export of {name} failed; nothing was measured")


def recovered(shipped: Bundle) -> ExportSource:
    """Return nano with the weights in the graphs of its half bundle. Raises BundleError."""
    model = Samwise(SIZES["small"])
    for p in model.parameters():
        torch.nn.init.normal_(p)  # equal ones could not be told apart
    source = base.describe(NETWORK, model, provenance=shipped.manifest.provenance)
    stages = list(source.stages())
    for stage in stages:
        load_weights(stage, shipped.folder / shipped.manifest.stages[stage.name].files["default"])
    return replace(source, stages=lambda: stages, clip=None)


def _export_recovered(
    source: ExportSource, shipped: Bundle, options: argparse.Namespace, name: str, precision: str
) -> None:
    assert shipped.manifest.tokenizer is not None, "nano has one"
    tokenizer = shipped.folder / shipped.manifest.tokenizer
    print(f"exporting {name} from the graphs of {shipped.folder}", flush=True)
    export_bundle(
        source,
        options.engines,
        name,
        precision=precision,
        tokenizer_source=tokenizer,
        variants=("ort",),
        threads=options.export_threads,
        report=lambda line: print(line, flush=True),
    )


def _of_these_weights(folder: Path, checkpoint: Path) -> bool:
    try:
        provenance = choose(folder).manifest.provenance
    except runtime.BundleError:
        return False
    return provenance.get("checkpoint_sha256") == sha256(checkpoint.read_bytes()).hexdigest()


def key(bundle: Bundle, configuration: Configuration) -> dict[str, str]:
    """Identity of a result; results with another key are measured again."""
    return {
        "bundle": bundle.name,
        "graphs": autotune.fingerprint(bundle.manifest),
        "precision": bundle.manifest.precision,
        "backend": configuration.backend,
        "library": autotune.versions(*configuration.libraries),
        "processor": autotune.processor(),
    }


def measure(engines: Mapping[str, Any], case: Case, wanted: Sequence[str]) -> dict[str, dict]:
    """Run one clip in the configurations `wanted`, REFERENCE first: records, IoU with its masks, CPU seconds."""
    order = [REFERENCE, *(name for name in wanted if name != REFERENCE)]
    found: dict[str, dict] = {}
    for name in order:
        began = time.process_time()
        masks = sentences(engines[name], case, case.texts, Ablation())
        seconds = time.process_time() - began
        if name == REFERENCE:
            plain = masks
        records = case.records(masks)
        found[name] = {
            "records": [asdict(r) for r in records],
            "cpu_seconds": seconds,
            "iou": [clip_jaccard(a, b) for a, b in zip(masks, plain, strict=True)],
        }
    return found


def summary(clips: Mapping[str, Mapping[str, dict]], name: str) -> dict[str, Any]:
    """Row of one configuration, over the clips that it and the reference have in common."""
    shared = [c for c in clips[name] if c in clips[REFERENCE]]
    mine = [Record(**r) for c in shared for r in clips[name][c]["records"]]
    plain = [Record(**r) for c in shared for r in clips[REFERENCE][c]["records"]]
    change: Mapping[str, Any] | None = scores.paired_difference(plain, mine)
    assert change, "both have the same clips"
    gap = [a.jf - b.jf for a, b in zip(mine, plain, strict=True)]
    overlaps = [x for c in shared for x in clips[name][c]["iou"]]
    ours, theirs = (sum(clips[n][c]["cpu_seconds"] for c in shared) for n in (name, REFERENCE))
    return {
        **scores.summarize(mine),
        "difference": change["difference"],
        "difference_interval": change["interval"],
        "largest_difference": round(float(np.abs(gap).max()), 4),
        "iou_mean": round(float(np.mean(overlaps)), 4),
        "iou_least": round(min(overlaps), 4),
        "cpu_speed": round(theirs / ours, 2),
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table of docs/notes/cpu.md."""
    head = "|J&F|difference to fp32, 95 %|largest, one sentence|IoU with fp32's masks (least)|CPU speed".split("|")
    lines = []
    for name, r in rows.items():
        low, high = r["difference_interval"]
        gap = "" if name == REFERENCE else f"{r['difference']:+.4f} ({low:+.4f} .. {high:+.4f})"
        iou = f"{r['iou_mean']:.4f} ({r['iou_least']:.3f})"
        lines.append((name, f"{r['J&F']:.3f}", gap, f"{r['largest_difference']:.3f}", iou, f"{r['cpu_speed']:.2f}x"))
    return tables.table(head, lines)


def read(path: Path, keys: Mapping[str, dict]) -> dict[str, dict[str, dict]]:
    """Read the clips measured before, by configuration, where the keys are the same."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data["configurations"] if "configurations" in data else data["ways"]  # files of version 0.1.0
        return {n: dict(found[n]["clips"]) if n in found and found[n]["key"] == keys[n] else {} for n in keys}
    except (OSError, ValueError, KeyError, TypeError):
        return {name: {} for name in keys}


def write(path: Path, keys: Mapping[str, dict], clips: Mapping[str, dict]) -> dict[str, dict]:
    """Write everything that is measured to `path`. Returns the rows."""
    rows = {name: summary(clips, name) for name in keys if clips[name]}
    data = {
        "command": "python -m benchmarks.precisions",
        "reference": REFERENCE,
        "threads": 1,
        "table": rows,
        "configurations": {name: {"key": keys[name], "clips": clips[name]} for name in rows},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return rows


def document(path: Path, text: str) -> None:
    """Write the table between the marks of the document. Raises UserError if they are missing."""
    before, found, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, ended, after = rest.partition(MARKS[1])
    if not found or not ended:
        raise runtime.UserError(f"{path}: the marks {MARKS[0]} and {MARKS[1]} are missing; restore them")
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


def run(
    engines: Mapping[str, Any],
    keys: Mapping[str, dict],
    cases: Callable[[int], Case],
    numbers: Sequence[int],
    path: Path,
    progress: Callable[[str], None],
) -> dict[str, dict]:
    """Measure the missing clips, writing each as soon as it is done. Returns the rows."""
    clips, warm = read(path, keys), False
    for done, number in enumerate(numbers, 1):
        wanted = [name for name in keys if str(number) not in clips[name]]
        if not wanted:
            continue
        if not warm:  # libraries compile for a shape at its first use
            warm = bool(measure(engines, cases(number), wanted))
        for name, found in measure(engines, cases(number), wanted).items():
            clips[name][str(number)] = found
        rows = write(path, keys, clips)
        progress(f"{done}/{len(numbers)} clips  " + "  ".join(f"{n} {r['J&F']:.3f}" for n, r in rows.items()))
    for name in keys:  # of the requested clips only
        clips[name] = {str(n): clips[name][str(n)] for n in numbers}
    return write(path, keys, clips)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precisions", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--checkpoint", type=Path, help="weights of nano to export (default: those of --shipped)")
    add("--tokenizer", type=Path, default=Path("build/nano/tokenizer.json"), help="for the export of a checkpoint")
    add("--engines", type=Path, default=Path("build/nano/precisions"), help="folder of nano-fp32/, ...")
    add("--shipped", type=Path, default=Path("engines/nano"), help="the half bundle (default: %(default)s)")
    add("--clips", type=int, default=20, help="clips of the nano test set (default: %(default)s)")
    add("--export-threads", type=int, default=2, help="CPU threads of an export's comparison")
    add("--configuration", choices=CONFIGURATIONS, action="append", help="only this one and fp32; may be repeated")
    add("--json", type=Path, default=RESULT, help="results; an existing file is continued (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    names = [n for n in CONFIGURATIONS if not options.configuration or n in (REFERENCE, *options.configuration)]
    chosen = {name: CONFIGURATIONS[name] for name in names}
    try:
        found = bundles(options)
        engines = {n: runtime.load(found[c.bundle].folder, backend=c.backend, threads=1) for n, c in chosen.items()}
    except runtime.SamwiseRuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, runtime.UserError) else 1
    rows = run(
        engines,
        {name: key(found[c.bundle], c) for name, c in chosen.items()},
        lambda number: next(nano(1, number)),
        range(options.clips),
        options.json,
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(table(rows))
    try:
        if options.json == RESULT and len(rows) == len(CONFIGURATIONS):
            document(DOCUMENT, table(rows))
    except (runtime.SamwiseRuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
