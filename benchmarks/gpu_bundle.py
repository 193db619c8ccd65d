"""Half-precision SAMWISE bundle of published size with random weights and split stages: needs no checkpoint.

    python -m benchmarks.gpu_bundle --out engines/ [--variant tiny]
    python -m benchmarks.gpu_check --engines engines/

Times do not depend on weights, nor does the agreement of a kernel with the graph that it replaces; the masks have no
meaning. Needs the export's libraries.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from export.layers.hiera import PUBLISHED_TRUNKS

from .engine_table import half_graphs, network


def write(model: Any, folder: Path) -> Path:
    """Write the bundle of a SAMWISE model with its split stages, without parity checks; return `folder`."""
    from export import split_attention
    from export.networks import base

    with tempfile.TemporaryDirectory() as work:
        source = base.describe("samwise", model, variant="random")
        source = split_attention.with_split_stages(source, model, "fp16", Path(work))
        files, split, variants = source.attachments, source.split_stages, ("default", "cuda", "trt")
        return half_graphs(source.stages(), folder, source.networks, variants, files, split, "random")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_bundle", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of bundles")
    parser.add_argument("--variant", default="tiny", choices=tuple(PUBLISHED_TRUNKS))
    options = parser.parse_args()
    folder = options.out / f"samwise-{options.variant}-random"
    if folder.exists():
        print(f"error: {folder} is there already; remove it", file=sys.stderr)
        return 2
    print(write(network("samwise", options.variant)[1], folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
