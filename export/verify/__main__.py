"""The command that compares a backend with ONNX Runtime on an existing bundle: `python -m export.verify engines/NAME`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.bundle.bundle import choose
from runtime.errors import SamwiseRuntimeError, fail

from .backend_check import recheck
from .parity import require, table
from .parity_clip import save_clip
from .polygraphy_dump import Runs, hints
from .polygraphy_dump import summary as runs_summary


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.verify", description="Check a bundle on a backend.")
    parser.add_argument("bundle", help="a bundle, or a folder of bundles with --model")
    parser.add_argument("--model", help="name of the bundle or of the network")
    parser.add_argument("--backend", default="auto", help="backend to check (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the backend decides)")
    parser.add_argument(
        "--kernels",
        choices=("auto", "on", "off"),
        default="auto",
        help="on: run split stages with kernels (default: %(default)s)",
    )
    parser.add_argument(
        "--runs", metavar="FOLDER", help="keep inputs and outputs of every stage for Polygraphy's tools"
    )
    parser.add_argument("--save", metavar="FILE", help=argparse.SUPPRESS)  # used by the export itself
    options = parser.parse_args(arguments)
    try:
        if options.save:
            save_clip(Path(options.bundle), options.backend, options.threads, options.save)
            return 0
        bundle = choose(options.bundle, options.model)
        runs = Runs(options.runs, options.backend) if options.runs else None
        rows, clip = recheck(bundle, options.backend, options.threads, runs, options.kernels)
        print(table(rows, clip))
        if runs is not None:
            print("\n".join([runs_summary(runs.rows), *hints(runs, bundle.folder, options.backend)]))
        require(rows, clip)
    except SamwiseRuntimeError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
