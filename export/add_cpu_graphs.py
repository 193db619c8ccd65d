"""Graphs for CPUs for a half bundle that was exported without them: `python -m export add-cpu-graphs BUNDLE`.

Needs no checkpoint: the graphs are made of those in the bundle, and refer to their files of weights. Every file that
is there but manifest, report and graphs of this variant stays as it is, byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from runtime.bundle.bundle import choose
from runtime.bundle.manifest import SUBGRAPH, Manifest, StageSpec
from runtime.errors import UserError

from . import precision
from .bundle import GRAPHS, write_manifest
from .publish import replacing
from .verify import parity
from .verify.backend_check import check_backend


def add_cpu_graphs(folder: Path, report: Callable[[str], None] = lambda line: None) -> None:
    """Give every stage of a half bundle a graph that computes in float32, in one step.

    They are compared with the half graphs on the stages' inputs in a clip. Raises UserError for a bundle of another
    precision, BundleError for a damaged one, ParityError.
    """
    folder = Path(folder).resolve()
    manifest = Manifest.load(folder)
    if manifest.precision != "fp16":
        raise UserError(f"{folder}: only half bundles (--precision fp16) have other graphs for CPUs")
    with replacing(folder.parent, folder.name) as work:
        shutil.copytree(folder, work, dirs_exist_ok=True)  # no links: onnx takes them for an attack
        specs = {name: _widen(spec, work) for name, spec in manifest.stages.items()}
        write_manifest(replace(manifest, stages=specs), work)
        rows, frames = check_backend(choose(work), "ort")
        report(parity.format_table(rows, frames))
        parity.require_passed(rows, frames)
        parity.extend(work / parity.FILE, rows)
        write_manifest(replace(manifest, stages=specs), work)


def _widen(spec: StageSpec, folder: Path) -> StageSpec:
    """Write the graph for CPUs of one stage, from that of the same variant or the default one."""
    if spec.role == SUBGRAPH:
        return spec
    model = precision.widened(ir.load(folder / spec.files.get(precision.WIDE, spec.files["default"])))
    file = f"{GRAPHS}/{spec.name}.{precision.WIDE}.onnx"
    files = dict(spec.files)
    # variants that were equal to this one share its file, and remain half
    others = sorted(variant for variant, path in files.items() if path == file and variant != precision.WIDE)
    for variant in others:
        files[variant] = f"{GRAPHS}/{spec.name}.{others[0]}.onnx"
    if others:
        (folder / file).replace(folder / files[others[0]])
    (folder / file).write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return replace(spec, files={**files, precision.WIDE: file})
