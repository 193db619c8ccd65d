"""J, F and J&F of a bundle, on the nano test set or on a folder in a public layout.

    python -m benchmarks.accuracy --engine engines/nano                             # fresh clips of the nano dataset
    python -m benchmarks.accuracy --engine engines/nano --all                       # every variant in turn
    python -m benchmarks.accuracy --kinds later earlier --variant text --variant "memory off" --variant "CME off"
    python -m benchmarks.accuracy --engine engines/samwise --data DIR --layout mevis
    python -m benchmarks.accuracy --engine engines/samwise --data MeViS/valid --layout mevis --submit mevis.zip

J is region similarity, F contour accuracy with a tolerance of 0.8 % of the diagonal (DAVIS). Intervals are 95 %
bootstrap intervals over clips. Layouts: `davis` (JPEGImages, Annotations as indexed PNG, meta_expressions.json),
`ytvos` (Ref-YouTube-VOS: the same), `mevis` (meta_expressions.json, mask_dict.json with run-length codes).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from export.nano import scores
from export.nano.scores import Record

from . import accuracy_tables, datasets, submissions
from .datasets import Case


@dataclass(frozen=True, slots=True)
class Ablation:
    """Settings of a variant. A `prompt` other than text is given on frame 0, which then does not count."""

    prompt: str = "text"
    shuffled: bool = False
    conditional: bool = True
    memory: bool = True
    window: int = 0
    latency: str = "clip"
    reference_quirks: bool = False


VARIANTS = {
    "text": Ablation(),
    "shuffled sentences": Ablation(shuffled=True),
    "memory off": Ablation(memory=False),
    "CME off": Ablation(conditional=False),
    "clips of one frame": Ablation(window=1),
    "clips of four": Ablation(window=4),
    "low latency": Ablation(latency="low"),
    "reference quirks": Ablation(reference_quirks=True),
    "clips of one frame, memory off": Ablation(window=1, memory=False),
    "clips of one frame, CME off": Ablation(window=1, conditional=False),
    "click": Ablation(prompt="click"),
    "box": Ablation(prompt="box"),
    "mask": Ablation(prompt="mask"),
}


def sentences(engine: runtime.Engine, case: Case, texts: list[str], ablation: Ablation) -> np.ndarray:
    """Return masks (N,T,H,W) bool of some sentences in one clip."""
    prompts = [runtime.Text(text) for text in texts]
    options: dict = {} if ablation.conditional else {"conditional_memory": False}
    # a runtime without an option refuses it by name
    options |= {} if ablation.memory else {"memory": False}
    options |= {"window": ablation.window} if ablation.window else {}
    options |= {"latency": ablation.latency} if ablation.latency != "clip" else {}
    options |= {"reference_quirks": True} if ablation.reference_quirks else {}
    with engine.session(prompts, **options) as session:
        return np.stack([result.masks for result in session.stream(case.frames())], 1)


def visual(engine: runtime.Engine, case: Case, kind: str) -> np.ndarray:
    """Return masks (N,T,H,W) of prompts drawn from the truth of frame 0: its most inner point, its box, or itself."""
    with engine.live() as session:
        masks = []
        for t, frame in enumerate(case.frames()):
            given = {k + 1: prompt_of(m[0], kind) for k, m in enumerate(case.masks)} if t == 0 else None
            for result in session.push(frame, prompts=given) if given else session.push(frame):
                masks.append(result.masks)
    return np.stack(masks, 1)


def prompt_of(mask: np.ndarray, kind: str) -> runtime.Points | runtime.Box | runtime.Mask:
    """Return a click in the middle of the mask's thickest part, its tight box, or the mask, (H,W) bool."""
    if kind == "mask":
        return runtime.Mask(mask)
    ys, xs = np.nonzero(mask)
    if kind == "box":
        return runtime.Box([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    thick = mask
    while True:  # peel until nothing is left
        peeled = np.zeros_like(thick)
        peeled[1:-1, 1:-1] = thick[1:-1, 1:-1] & thick[:-2, 1:-1] & thick[2:, 1:-1] & thick[1:-1, :-2] & thick[1:-1, 2:]
        if not peeled.any():
            break
        thick = peeled
    ys, xs = np.nonzero(thick)
    middle = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return runtime.Points([[float(xs[middle]), float(ys[middle])]], [1])


def measure(
    engine: runtime.Engine, cases: list[Case], ablation: Ablation, progress: Callable[[str], None]
) -> list[Record]:
    """Return the records of all cases."""
    records: list[Record] = []
    for i, case in enumerate(cases):
        if ablation.prompt == "text":
            other = cases[(i + 1) % len(cases)].texts if ablation.shuffled else case.texts
            predicted = sentences(engine, case, [other[k % len(other)] for k in range(len(case.texts))], ablation)
            skip = 0
        else:
            case = case.promptable()
            if not case.texts:
                continue
            predicted, skip = visual(engine, case, ablation.prompt), 1
        records += case.records(predicted, skip)
        progress(f"{i + 1}/{len(cases)} clips, J&F {np.mean([r.jf for r in records]):.3f}")
    return records


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}  ", end="", file=sys.stderr, flush=True)


def _cases(args: argparse.Namespace) -> Iterator[Case]:
    if args.data is None:
        return datasets.nano(args.clips or 60, args.first, args.split, args.kinds and tuple(args.kinds))
    return datasets.LAYOUTS[args.layout](args.data)


def _submit(engine: runtime.Engine, args: argparse.Namespace) -> int:
    """Write an archive for the evaluation server of a data set. Raises UserError, FileNotFoundError."""
    if args.data is None:
        raise runtime.UserError("--submit needs --data, the folder of a split, and its --layout")
    count = submissions.submit(engine, args.data, args.layout, args.submit, args.clips, args.reference_quirks)
    print(f"wrote {args.submit}: {count} videos")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description="J&F of a bundle")
    add = parser.add_argument
    add("--engine", default="engines/nano", help="bundle, or folder of bundles (default: %(default)s)")
    add("--model", help="which bundle of the folder")
    add("--backend", default="auto")
    add("--threads", type=int)
    add("--data", type=Path, help="data set; without it fresh clips of the nano dataset are drawn")
    add("--layout", choices=datasets.LAYOUTS, default="davis", help="layout of --data")
    add("--clips", type=int, help="clips to measure (default: 60, or all videos of a submission)")
    add("--first", type=int, default=0, help="number of the first clip of the nano test set")
    add("--split", choices=("val", "test"), default="test")
    add("--kinds", nargs="+", metavar="KIND", help="only contrast groups of these kinds, in clips of 16 frames")
    add("--variant", choices=VARIANTS, action="append", help="variant to run; may be repeated (default: text)")
    add("--all", action="store_true", help="all variants that the bundle can run")
    add(
        "--submit",
        type=Path,
        metavar="ZIP",
        help="no ground truth: write the masks of --data for its evaluation server",
    )
    quirks = "of --submit: forget the memory on a last clip of one frame, as the official code does"
    add("--reference-quirks", action="store_true", help=quirks)
    add("--json", type=Path, help="write tables and records here")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        engine = runtime.load(args.engine, model=args.model, backend=args.backend, threads=args.threads)
        if args.submit is not None:
            return _submit(engine, args)
        cases = list(islice(_cases(args), args.clips or 60))
    except (runtime.SamwiseRuntimeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    data = str(args.data or f"nano {args.split}")
    variants: dict[str, dict[str, Any]] = {}
    report = {"engine": str(args.engine), "data": data, "kinds": args.kinds, "clips": len(cases), "variants": variants}
    base: list[Record] | None = None
    for name in VARIANTS if args.all else args.variant or ["text"]:
        began = time.perf_counter()
        try:
            records = measure(engine, cases, VARIANTS[name], _progress)
        except (runtime.UserError, TypeError) as error:
            if not args.all:
                print(f"error: {error}", file=sys.stderr)
                return 2
            print(f"\n{name}: not run ({error})")
            continue
        rows = scores.table(records)
        print(f"\n{name} ({time.perf_counter() - began:.0f} s)\n{scores.format_table(rows)}", flush=True)
        variants[name] = {"table": rows, "records": [asdict(r) for r in records]}
        base = records if base is None else base
        if records is not base and (change := scores.paired_difference(base, records)):
            variants[name]["against_first"] = change
            print("against the first variant:", accuracy_tables.difference(variants[name]))
        if args.json:  # after each variant, for all of them take long
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
