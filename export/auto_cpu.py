"""Choice of precision and backend on this machine: `export --precision auto-cpu --max-loss 0.005`.

The bundle is exported in float32 and compared with PyTorch as always. The other precisions are made from its graphs,
one stage at a time, and all of them and the backends run the parity clip in processes of their own. The fastest whose
masks differ by no more than the loss is published; `auto` of the runtime takes its backend here from then on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from runtime.backends import autotune
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import Manifest, StageSpec
from runtime.errors import SamwiseRuntimeError
from runtime.metrics import clip_jaccard

from . import onnx, quantization
from .bundle import GRAPHS, write_manifest
from .progress import Progress
from .publish import replacing
from .verify.parity_clip import ClipOutput, timed_clip_in_child

NAME = "auto-cpu"
MAX_LOSS = 0.005

EXACT = ("fp32", "ort")
CANDIDATES = (EXACT, ("fp32", "openvino"), ("fp32", "openvino-bf16"), *((p, "ort") for p in quantization.QUANTIZERS))
"""Precisions and backends that are tried."""

AREA = 0.1
"""Part of a map that is compared where a mask covers less: empty masks would hide every difference."""

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """A precision on a backend: seconds of the clip, mean loss of mask IoU, size of the bundle."""

    precision: str
    backend: str
    seconds: float
    loss: float
    megabytes: float


def publish(exact: Path, out: Path, name: str, max_loss: float, threads: int | None, report: Report) -> Path:
    """Publish the fastest bundle as `out/name`, made from the float32 bundle `exact`. Returns its folder."""
    found, reference, progress = [], None, Progress(report)
    for precision, backend in CANDIDATES:
        try:
            with progress.task("measuring", f"{precision} on {backend}"):
                folder = exact if precision == EXACT[0] else convert(exact, precision)
                results, seconds = timed_clip_in_child(folder, backend, threads)
        except SamwiseRuntimeError as error:  # a library that is not installed, or a processor without bfloat16
            if reference is None:
                raise
            report(f"{precision} on {backend}: {error}")
            continue
        reference = reference or results
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6
        found.append(Measured(precision, backend, seconds, loss(reference, results), size))
    best = fastest(found, max_loss)
    report(table(found, best, max_loss))
    with replacing(out, name) as folder:
        shutil.copytree(folder_of(exact, best.precision), folder, dirs_exist_ok=True)
    if best.backend != EXACT[1]:
        path = autotune.save_choice(best.backend, choose(out / name).manifest, best.loss, max_loss)
        report(f"auto will take {best.backend} on this machine ({path})")
    return out / name


def folder_of(exact: Path, precision: str) -> Path:
    """Return the folder of a precision, beside that of the float32 bundle."""
    return exact if precision == EXACT[0] else exact.with_name(f"{exact.name}-{precision}")


def convert(exact: Path, precision: str) -> Path:
    """Write the bundle with the products of every stage in `precision`. Returns its folder."""
    target = folder_of(exact, precision)
    shutil.copytree(exact, target, ignore=shutil.ignore_patterns(GRAPHS, "parity.json"))
    (target / GRAPHS).mkdir()
    manifest = Manifest.load(exact)
    stages = {name: _convert(exact, spec, precision, target) for name, spec in manifest.stages.items()}
    provenance = {key: value for key, value in manifest.provenance.items() if key != "parity"}
    write_manifest(replace(manifest, precision=precision, stages=stages, provenance=provenance), target)
    return target


def _convert(exact: Path, spec: StageSpec, precision: str, target: Path) -> StageSpec:
    models = {v: ir.load(exact / file) for v, file in spec.files.items() if v in quantization.VARIANTS}
    products = {variant: quantization.products(model) for variant, model in models.items()}
    if spec.int8_ok and all(products.values()):
        quantize = quantization.QUANTIZERS[precision][precision]
        models = {variant: quantize(model, products[variant]) for variant, model in models.items()}
        spec = replace(spec, precision=precision)
    for variant, model in models.items():
        onnx.tidy(model, spec, variant)
    files = onnx.save(models, target / GRAPHS, spec.name)
    return replace(spec, files={variant: f"{GRAPHS}/{file}" for variant, file in files.items()})


def loss(reference: Sequence[ClipOutput], results: Sequence[ClipOutput]) -> float:
    """Return 1 - IoU of the masks, averaged over frames and objects, at the level of the reference's masks."""
    losses = []
    for want, got in zip(reference, results, strict=True):
        for a, b in zip(want.low_res_logits, got.low_res_logits, strict=True):
            level = min(0.0, float(np.quantile(a, 1 - AREA)))
            losses.append(1 - clip_jaccard(a[None] > level, b[None] > level))
    return float(np.mean(losses))


def fastest(found: Sequence[Measured], max_loss: float) -> Measured:
    """Return the fastest within the loss; the first, which is exact, always is."""
    return min((m for m in found if m is found[0] or m.loss <= max_loss), key=lambda m: m.seconds)


def table(found: Sequence[Measured], best: Measured, max_loss: float) -> str:
    """Format the measurements, the first of which is the reference, with what became of each."""
    lines = [f"{'precision':14} {'backend':14} {'speed':>6} {'IoU loss':>9} {'MB':>7}"]
    lines += [
        f"{m.precision:14} {m.backend:14} {found[0].seconds / m.seconds:5.2f}x {m.loss:9.5f} {m.megabytes:7.0f}"
        + ("  chosen" if m is best else f"  loses more than {max_loss:g}" if m.loss > max_loss else "")
        for m in found
    ]
    return "\n".join(lines)
