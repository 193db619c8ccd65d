"""What a precision or backend on a CPU costs in J&F, and what it gains: all on the same clips, in turn, in one process.

    python -m benchmarks.precisions --checkpoint build/nano/run/nano.pth --tokenizer build/nano/tokenizer.json
    python -m benchmarks.precisions --engines FOLDER              # holds nano-fp32/ and nano-int8/ already

With `--checkpoint`, fp32 and INT8 bundles are exported into `--engines` unless they are there already, from these
weights. Each sentence is compared with the fp32 bundle on ONNX Runtime: difference of J&F with a 95 % bootstrap
interval over clips, IoU with its masks, CPU seconds of the whole pipeline at one thread each, alternating clip by clip.
Stopped, it goes on where it was. The table goes into docs/cpu.md, between its marks, when the results go to where they
are committed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from export.nano import scores
from export.nano.scores import Record
from runtime.backends import autotune
from runtime.bundle.bundle import Bundle, choose
from runtime.metrics import clip_jaccard

from .accuracy import Switches, sentences
from .datasets import Case, nano

NETWORK = "samwise+sam2"
RESULT = Path("benchmarks/results/nano_precisions.json")
DOCUMENT, MARKS = Path("docs/cpu.md"), ("<!-- table: python -m benchmarks.precisions -->", "<!-- end of table -->")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run: a bundle, by the key of `bundles`, on a backend."""

    bundle: str
    backend: str
    libraries: tuple[str, ...]


REFERENCE = "fp32"
WAYS: Mapping[str, Way] = {
    REFERENCE: Way("fp32", "ort", ("onnxruntime",)),
    "fp16, as shipped": Way("shipped", "ort", ("onnxruntime",)),
    "int8": Way("int8", "ort", ("onnxruntime",)),
    "openvino": Way("fp32", "openvino", ("openvino",)),
    "openvino-bf16": Way("fp32", "openvino-bf16", ("openvino",)),
}


def bundles(options: argparse.Namespace) -> dict[str, Bundle]:
    """The bundles by key, exported first where they are missing or of other weights. Raises BundleError, UserError."""
    found = {"shipped": choose(options.shipped)}
    for precision in ("fp32", "int8"):
        name = f"nano-{precision}"
        if options.checkpoint and not _of_these_weights(options.engines / name, options.checkpoint):
            command = [
                sys.executable,
                "-m",
                "export",
                NETWORK,
                "--checkpoint",
                str(options.checkpoint),
                "--name",
                name,
                "--precision",
                precision,
                "--out",
                str(options.engines),
                "--threads",
                str(options.export_threads),
                "--tokenizer",
                str(options.tokenizer),
            ]
            print("$ python", *command[1:], flush=True)
            if subprocess.run(command).returncode:
                raise runtime.UserError(f"the export of {name} failed; nothing was measured")
        found[precision] = choose(options.engines / name)
    weights = {b.manifest.provenance.get("checkpoint_sha256") for b in found.values()}
    if len(weights) > 1:
        print(f"note: {options.shipped} and the bundles of {options.engines} are of different weights", file=sys.stderr)
    return found


def _of_these_weights(folder: Path, checkpoint: Path) -> bool:
    try:
        provenance = choose(folder).manifest.provenance
    except runtime.BundleError:
        return False
    return provenance.get("checkpoint_sha256") == sha256(checkpoint.read_bytes()).hexdigest()


def key(bundle: Bundle, way: Way) -> dict[str, str]:
    """What a result is about; one about anything else is measured anew."""
    return {
        "bundle": bundle.name,
        "graphs": autotune.fingerprint(bundle.manifest),
        "precision": bundle.manifest.precision,
        "backend": way.backend,
        "library": autotune.versions(*way.libraries),
        "processor": autotune.processor(),
    }


def measure(engines: Mapping[str, Any], case: Case, wanted: Sequence[str]) -> dict[str, dict]:
    """One clip in the ways `wanted`, REFERENCE first: records, IoU with the reference's masks, CPU seconds."""
    order = [REFERENCE, *(name for name in wanted if name != REFERENCE)]
    found: dict[str, dict] = {}
    for name in order:
        began = time.process_time()
        masks = sentences(engines[name], case, case.texts, Switches())
        seconds = time.process_time() - began
        if name == REFERENCE:
            plain = masks
        records = [
            Record(case.name, text, kind, unseen, *scores.score(mask, truth))
            for mask, truth, text, kind, unseen in zip(
                masks, case.masks, case.texts, case.kinds, case.unseen, strict=True
            )
        ]
        found[name] = {
            "records": [asdict(r) for r in records],
            "cpu_seconds": seconds,
            "iou": [clip_jaccard(a, b) for a, b in zip(masks, plain, strict=True)],
        }
    return found


def summary(clips: Mapping[str, Mapping[str, dict]], name: str) -> dict[str, Any]:
    """The row of one way, over the clips that it and the reference have in common."""
    shared = [c for c in clips[name] if c in clips[REFERENCE]]
    mine = [Record(**r) for c in shared for r in clips[name][c]["records"]]
    plain = [Record(**r) for c in shared for r in clips[REFERENCE][c]["records"]]
    change = scores.paired_difference(plain, mine)
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
    """Markdown, as in docs/cpu.md."""
    lines = [
        "| | J&F | difference to fp32, 95 % | largest, one sentence | IoU with fp32's masks (least) | CPU speed |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        low, high = r["difference_interval"]
        gap = "" if name == REFERENCE else f"{r['difference']:+.4f} ({low:+.4f} .. {high:+.4f})"
        lines.append(
            f"| {name} | {r['J&F']:.3f} | {gap} | {r['largest_difference']:.3f} | {r['iou_mean']:.4f} "
            f"({r['iou_least']:.3f}) | {r['cpu_speed']:.2f}x |"
        )
    return "\n".join(lines)


def read(path: Path, keys: Mapping[str, dict]) -> dict[str, dict[str, dict]]:
    """Clips measured before, by way, as far as they are about the same things."""
    try:
        ways = json.loads(path.read_text(encoding="utf-8"))["ways"]
        return {
            name: dict(ways[name]["clips"]) if name in ways and ways[name]["key"] == keys[name] else {} for name in keys
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {name: {} for name in keys}


def write(path: Path, keys: Mapping[str, dict], clips: Mapping[str, dict]) -> dict[str, dict]:
    """Rows of all that is measured, also written to `path`."""
    rows = {name: summary(clips, name) for name in keys if clips[name]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "command": "python -m benchmarks.precisions",
                "reference": REFERENCE,
                "threads": 1,
                "table": rows,
                "ways": {name: {"key": keys[name], "clips": clips[name]} for name in rows},
            },
            indent=1,
        )
        + "\n",
        encoding="utf-8",
    )
    return rows


def document(path: Path, text: str) -> None:
    """Put the table between the marks of the document. Raises UserError if they are not there."""
    before, found, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, ended, after = rest.partition(MARKS[1])
    if not found or not ended:
        raise runtime.UserError(f"{path}: the marks {MARKS[0]} and {MARKS[1]} are gone; put them back")
    path.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}", encoding="utf-8")


def run(
    engines: Mapping[str, Any],
    keys: Mapping[str, dict],
    cases: Callable[[int], Case],
    numbers: Sequence[int],
    path: Path,
    progress: Callable[[str], None],
) -> dict[str, dict]:
    """Measure what is missing, clip by clip, each kept as soon as it is done. Returns the rows."""
    clips, warm = read(path, keys), False
    for done, number in enumerate(numbers, 1):
        wanted = [name for name in keys if str(number) not in clips[name]]
        if not wanted:
            continue
        if not warm:  # libraries compile for a shape when they first meet it
            warm = bool(measure(engines, cases(number), wanted))
        for name, found in measure(engines, cases(number), wanted).items():
            clips[name][str(number)] = found
        rows = write(path, keys, clips)
        progress(f"{done}/{len(numbers)} clips  " + "  ".join(f"{n} {r['J&F']:.3f}" for n, r in rows.items()))
    for name in keys:  # of the clips asked for, and no others
        clips[name] = {str(n): clips[name][str(n)] for n in numbers}
    return write(path, keys, clips)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precisions", description="J&F and speed of precisions on a CPU"
    )
    parser.add_argument("--checkpoint", type=Path, help="weights of nano, to export fp32 and INT8 bundles from")
    parser.add_argument("--tokenizer", type=Path, default=Path("build/nano/tokenizer.json"), help="for the export")
    parser.add_argument(
        "--engines",
        type=Path,
        default=Path("build/nano/precisions"),
        help="folder of nano-fp32/ and nano-int8/ (default: %(default)s)",
    )
    parser.add_argument(
        "--shipped", type=Path, default=Path("engines/nano"), help="the half bundle (default: %(default)s)"
    )
    parser.add_argument("--clips", type=int, default=20, help="clips of the nano test set (default: %(default)s)")
    parser.add_argument("--export-threads", type=int, default=2, help="CPU threads of an export's comparison")
    parser.add_argument("--way", choices=WAYS, action="append", help="only this one and fp32; may be repeated")
    parser.add_argument(
        "--json", type=Path, default=RESULT, help="results; read first, to go on (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        found = bundles(options)
        ways = {name: way for name, way in WAYS.items() if not options.way or name in (REFERENCE, *options.way)}
        engines = {
            name: runtime.load(found[way.bundle].folder, backend=way.backend, threads=1) for name, way in ways.items()
        }
    except runtime.SamwiseRuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, runtime.UserError) else 1
    keys = {name: key(found[way.bundle], way) for name, way in ways.items()}
    rows = run(
        engines,
        keys,
        lambda number: next(nano(1, number)),
        range(options.clips),
        options.json,
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(table(rows))
    try:
        if options.json == RESULT and len(rows) == len(WAYS):
            document(DOCUMENT, table(rows))
    except (runtime.SamwiseRuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
