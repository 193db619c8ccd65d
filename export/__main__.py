"""The command: `python -m export samwise --checkpoint X.pth --out engines/`.

One subcommand per network of `export.models`. Exit code 2 for what the caller can mend, 1 for an export that failed
(its parity, say); either way one line says why, and nothing half-written is left.
"""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.bundle.bundle import file_sha256
from runtime.bundle.demo import CLIP, MASKS, SENTENCES, Demo
from runtime.errors import SamwiseRuntimeError, UserError, fail

from . import upgrade
from .networks import MODELS, network


def parser() -> argparse.ArgumentParser:
    """Options of every network."""
    top = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a PyTorch checkpoint into a bundle that runs without PyTorch.",
        epilog="The graphs are compared with the checkpoint before anything is published; see the bundle's parity.json.",
    )
    networks = top.add_subparsers(dest="network", required=True, metavar="NETWORK")
    for name in sorted(MODELS):
        sub = networks.add_parser(
            name, help=f"export a {name} checkpoint", formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.add_argument(
            "--checkpoint",
            required=True,
            type=Path,
            metavar="FILE",
            help="official checkpoint (.pth, .pt); for sam2 a Hugging Face folder, too",
        )
        sub.add_argument("--out", default=Path("engines"), type=Path, metavar="DIR", help="folder of bundles")
        sub.add_argument(
            "--name", help="name of the bundle (default: from network, size and precision)", default=argparse.SUPPRESS
        )
        sub.add_argument(
            "--precision",
            default="fp32",
            choices=("fp32", "fp16", "int8"),
            help="fp16: half the size, for GPUs; int8: large matrix products in 8 bits, for CPUs, an "
            "approximation; stages that need it stay wider",
        )
        sub.add_argument(
            "--tokenizer",
            type=Path,
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="Hugging Face folder, tokenizer.json, or folder with vocab.json and merges.txt; without "
            "it the bundle takes token ids only",
        )
        sub.add_argument(
            "--image-size",
            type=int,
            metavar="PIXELS",
            default=argparse.SUPPRESS,
            help="side of the network's input, for networks that take several",
        )
        sub.add_argument(
            "--demo",
            type=Path,
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="demonstration that the bundle shall carry: clip.mp4, demo.json and masks.npz",
        )
        sub.add_argument(
            "--split-attention",
            action="store_true",
            help="for GPUs: stages split around their attention as well, so that compiled kernels can run it "
            "(samwise; see docs/gpu.md)",
        )
        sub.add_argument("--threads", type=int, default=argparse.SUPPRESS, help="CPU threads for the comparison")
    convert = networks.add_parser("upgrade", help="convert a bundle of format 1, in place; needs no checkpoint")
    convert.add_argument("bundle", type=Path, metavar="BUNDLE")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = vars(parser().parse_args(arguments))
    if options["network"] == "upgrade":
        return upgrade.run(options["bundle"])
    previous = _cleanly_on_sigterm()
    try:
        _export(options)
        return 0
    except SamwiseRuntimeError as error:
        return fail(error)
    except KeyboardInterrupt:
        print("stopped; nothing was published", file=sys.stderr)
        return 130
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}; nothing was published", file=sys.stderr)
        return 1
    except MemoryError:
        print("error: out of memory; close other programs or export on a larger machine", file=sys.stderr)
        return 1
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _export(options: dict[str, Any]) -> None:
    started = time.perf_counter()
    if not options["checkpoint"].exists():
        raise UserError(f"{options['checkpoint']}: no such file; give the path of a checkpoint (.pth or .pt)")
    if options.get("threads", 1) < 1:
        raise UserError(f"--threads must be 1 or more, not {options['threads']}")
    _say(f"reading {options['checkpoint'].name}")
    try:
        from . import bundle, split_attention
        from .networks import base
    except ImportError as error:
        raise UserError(f"the export needs {error.name}: pip install 'samwise-runtime[cpu,export]'") from None
    if threads := options.get("threads"):
        import torch

        torch.set_num_threads(threads)
    load = network(options["network"]).load
    chosen = {"image_size": options["image_size"]} if "image_size" in options else {}
    if chosen and "image_size" not in inspect.signature(load).parameters:
        raise UserError(f"{options['network']} has one input size; leave --image-size away")
    model = load(options["checkpoint"], **chosen)
    weights = options["checkpoint"]
    if weights.is_dir():  # a Hugging Face folder: its weights are its largest file by far
        weights = max((p for p in weights.iterdir() if p.is_file()), key=lambda p: p.stat().st_size)
    source = {"checkpoint": options["checkpoint"].name, "checkpoint_sha256": file_sha256(weights)}
    subject = base.describe(options["network"], model, provenance=source, **_demonstration(options.get("demo")))
    suffix = "" if options["precision"] == "fp32" else f"-{options['precision']}"
    name = options.get("name", f"{options['network']}-{subject.variant}{suffix}")
    if subject.vocabulary and "tokenizer" not in options:
        _say("no --tokenizer: the bundle will take token ids, not sentences")
    with tempfile.TemporaryDirectory() as work:
        if options["split_attention"]:
            subject = split_attention.with_split_stages(subject, model, options["precision"], Path(work))
        folder = bundle.export_bundle(
            subject,
            options["out"],
            name,
            precision=options["precision"],
            threads=threads,
            tokenizer_source=options.get("tokenizer"),
            report=_say,
        )
    _say(f"published {folder} in {time.perf_counter() - started:.0f} s")


def _demonstration(folder: Path | None) -> dict[str, Any]:
    """Fields of a `Network` that carry a demonstration. Raises BundleError for one that is not whole."""
    if folder is None:
        return {}
    Demo.load(folder)
    return {"demo": "demo", "attachments": {f"demo/{name}": folder / name for name in (CLIP, SENTENCES, MASKS)}}


def _say(line: str) -> None:
    print(line, flush=True)


def _cleanly_on_sigterm() -> Any:
    """Let a polite kill unwind like Ctrl-C, so that the work folder is removed."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        return signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        return None


if __name__ == "__main__":
    sys.exit(main())
