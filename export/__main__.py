"""The export command: `python -m export samwise --checkpoint X.pth --out engines/`.

One subcommand per network of `export.networks`, `upgrade`, and `add-steps` and `add-cpu-graphs` for existing bundles.
Exit code 2 for mistakes of the caller, 1 for a failed export (a parity check that fails, for instance); an error is one
line, and nothing incomplete is published.
"""

from __future__ import annotations

import argparse
import hashlib
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
from .networks import NETWORKS, network

ADDITIONS = {
    "add-steps": ("low latency to a bundle of SAMWISE", "the stages of --latency low"),
    "add-cpu-graphs": ("graphs that CPUs run faster to a half bundle", "the graphs for CPUs"),
}
"""Subcommands for existing bundles -> what they add, for the help and for the closing line."""


def parser() -> argparse.ArgumentParser:
    """Build the parser, with one subcommand per network."""
    top = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a PyTorch checkpoint into a bundle that runs without PyTorch.",
        epilog="The graphs are compared with the checkpoint before they are published; see parity.json in the bundle.",
    )
    commands = top.add_subparsers(dest="network", required=True, metavar="NETWORK")
    for name in sorted(NETWORKS):
        _add_options(commands.add_parser(name, help=f"export a {name} checkpoint"))
    convert = commands.add_parser("upgrade", help="convert a bundle of format 1 in place; needs no checkpoint")
    convert.add_argument("bundle", type=Path, metavar="BUNDLE")
    for name, (what, _) in ADDITIONS.items():
        add = commands.add_parser(name, help=f"add {what} in place; needs no checkpoint")
        add.add_argument("bundle", type=Path, metavar="BUNDLE")
    return top


def _add_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="FILE|NAME",
        help="checkpoint: a file of torch or safetensors, a folder with model.safetensors or its shards, or a name "
        "that is downloaded: facebook/sam2.1-hiera-tiny, sam2.1_hiera_tiny.pt, samwise-mevis (docs/guides/export.md)",
    )
    add("--offline", action="store_true", help="download nothing; names are looked up in the caches")
    add("--out", default=Path("engines"), type=Path, metavar="DIR", help="folder of bundles (default: %(default)s)")
    add("--name", help="name of the bundle (default: from network, size and precision)")
    add(
        "--precision",
        default="fp32",
        choices=("fp32", "fp16", "int8", "int8-weights", "int4-weights", "auto-cpu"),
        help="fp16: half the size, for GPUs; for CPUs, approximations: int8, large matrix products in 8 bits; "
        "int8-weights, int4-weights, a scale for each block of weights: a quarter or a fifth of the size; stages that "
        "lose too much accuracy keep more bits; auto-cpu: all of them and the backends are measured on this machine, "
        "and the fastest within --max-loss is kept (default: %(default)s)",
    )
    add(
        "--max-loss",
        type=float,
        metavar="LOSS",
        help="mask IoU that auto-cpu may lose beside float32, on average over the parity clip (default: 0.005)",
    )
    add(
        "--tokenizer",
        metavar="DIR|NAME",
        help="Hugging Face folder, tokenizer.json, folder with vocab.json and merges.txt, CLIP's list of merges "
        "(bpe_simple_vocab_16e6.txt.gz), or a name that is downloaded, such as roberta-base; without it the bundle "
        "takes token ids only",
    )
    add("--image-size", type=int, metavar="PIXELS", help="side of the input image (default: that of the training)")
    add("--demo", type=Path, metavar="DIR", help="demonstration to include: clip.mp4, demo.json and masks.npz")
    add(
        "--split-attention",
        action="store_true",
        help="for GPUs: add stages split around their attention, for compiled kernels (samwise; docs/guides/gpu.md)",
    )
    add("--threads", type=int, help="CPU threads of the comparison (default: all)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = vars(parser().parse_args(arguments))
    if options["network"] == "upgrade":
        return upgrade.run(options["bundle"])
    previous = _interrupt_on_sigterm()
    try:
        if options["network"] in ADDITIONS:
            _add(options["network"], options["bundle"])
        else:
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
    """Export one checkpoint. Raises UserError, InternalError."""
    started = time.perf_counter()
    name, precision, threads = (options[k] for k in ("network", "precision", "threads"))
    if threads is not None and threads < 1:
        raise UserError(f"--threads must be 1 or more, not {threads}")
    auto = _check_loss(options["max_loss"], precision == "auto-cpu")
    chosen = {"image_size": options["image_size"]} if options["image_size"] is not None else {}
    if not chosen.keys() <= NETWORKS[name].options:
        raise UserError(f"{name} has one input size; remove --image-size")
    try:
        from . import auto_cpu, bundle, split_attention
        from .checkpoints import download
        from .networks import base
    except ImportError as error:
        raise UserError(f"the export needs {error.name}: pip install 'samwise-runtime[cpu,export]'") from None
    checkpoint = download.checkpoint(options["checkpoint"], options["offline"], _say)
    tokens = options["tokenizer"] or download.default_tokenizer(name, options["checkpoint"], checkpoint)
    if tokens is not None:
        tokens = download.tokenizer(tokens, options["offline"])
    shown = checkpoint.name if Path(options["checkpoint"]) == checkpoint else options["checkpoint"]
    _say(f"reading {shown}")
    if threads:
        import torch

        torch.set_num_threads(threads)
    model = network(name).load(checkpoint, **chosen)
    source = base.describe(name, model, provenance=_provenance(shown, checkpoint), **_demonstration(options["demo"]))
    suffix = "" if precision == "fp32" else f"-{precision}"
    size = f"-{options['image_size']}" if chosen and not source.variant.endswith(f"-{options['image_size']}") else ""
    if source.vocabulary and tokens is None:
        _say("no --tokenizer: the bundle will take token ids, not sentences")
    with tempfile.TemporaryDirectory() as work:
        if options["split_attention"]:
            source = split_attention.with_split_stages(source, model, precision, Path(work))
        target = f"{name}-{source.variant}{size}{suffix}" if options["name"] is None else options["name"]
        folder = bundle.export_bundle(
            source,
            Path(work) if auto else options["out"],
            target,
            **({"precision": "fp32", "variants": ("ort",)} if auto else {"precision": precision, "compiled": True}),
            threads=threads,
            tokenizer_source=tokens,
            report=_say,
        )
        if auto:
            limit = auto_cpu.MAX_LOSS if options["max_loss"] is None else options["max_loss"]
            folder = auto_cpu.publish(folder, options["out"], target, limit, threads, _say)
    _say(f"published {folder} in {time.perf_counter() - started:.0f} s")


def _check_loss(max_loss: float | None, auto: bool) -> bool:
    """Return `auto`. Raises UserError for a loss that means nothing."""
    if max_loss is not None and not (auto and 0 <= max_loss < 1):
        raise UserError("--max-loss goes with --precision auto-cpu and is 0 or more and less than 1")
    return auto


def _add(command: str, folder: Path) -> None:
    """Run one of `ADDITIONS` on a bundle. Raises UserError, InternalError."""
    try:
        from .add_cpu_graphs import add_cpu_graphs
        from .add_steps import add_steps
    except ImportError as error:
        raise UserError(f"the export needs {error.name}: pip install 'samwise-runtime[cpu,export]'") from None
    add = add_steps if command == "add-steps" else add_cpu_graphs
    add(folder, _say)
    _say(f"{folder}: added {ADDITIONS[command][1]}; other files are unchanged")


def _provenance(name: str, checkpoint: Path) -> dict[str, str]:
    """Return name and sha256 of the weights; of several shards, that of their sha256 in order."""
    from .checkpoints.files import weight_files

    digests = [file_sha256(file) for file in weight_files(checkpoint)]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return {"checkpoint": name, "checkpoint_sha256": digest}


def _demonstration(folder: Path | None) -> dict[str, Any]:
    """Return the fields of an `ExportSource` for a demonstration. Raises BundleError for an incomplete one."""
    if folder is None:
        return {}
    Demo.load(folder)
    return {"demo": "demo", "attachments": {f"demo/{name}": folder / name for name in (CLIP, SENTENCES, MASKS)}}


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt_on_sigterm() -> Any:
    """Handle SIGTERM like Ctrl-C, so that the work folder is removed. Returns the previous handler."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        return signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        return None


if __name__ == "__main__":
    sys.exit(main())
