"""The command `python -m export.verify engines/NAME`: compares a backend with ONNX Runtime on an existing bundle."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.bundle.bundle import choose
from runtime.errors import SamwiseRuntimeError, fail

from .backend_check import check_backend
from .parity import format_table, require_passed
from .parity_clip import save_clip
from .polygraphy_dump import PolygraphyDump


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m export.verify", description="Compare a backend with ONNX Runtime on an existing bundle."
    )
    parser.add_argument("bundle", help="a bundle, or a folder of bundles (then give --model)")
    parser.add_argument("--model", help="name of the bundle or of the network")
    parser.add_argument("--backend", default="auto", help="backend to check (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the backend decides)")
    parser.add_argument(
        "--kernels",
        choices=("auto", "on", "off"),
        default="auto",
        help="on: run split stages with kernels (default: %(default)s)",
    )
    parser.add_argument("--runs", metavar="FOLDER", help="write inputs and outputs of every stage for Polygraphy")
    parser.add_argument("--save", metavar="FILE", help=argparse.SUPPRESS)  # used by the export itself
    parser.add_argument("--repeats", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.save:
            save_clip(Path(options.bundle), options.backend, options.threads, options.save, options.repeats)
            return 0
        bundle = choose(options.bundle, options.model)
        dump = PolygraphyDump(options.runs, options.backend) if options.runs else None
        stages, frames = check_backend(bundle, options.backend, options.threads, dump, options.kernels)
        print(format_table(stages, frames))
        if dump is not None:
            print("\n".join([dump.summary(), *dump.hints(bundle.folder)]))
        require_passed(stages, frames)
    except SamwiseRuntimeError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
