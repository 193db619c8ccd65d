"""Export of a network as a bundle: graphs, tokenizer, parity report, manifest; published whole or not at all."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import onnx_ir as ir

from runtime.backends import create
from runtime.backends.base import Backend
from runtime.backends.ort import OrtBackend
from runtime.bundle.bundle import file_sha256
from runtime.bundle.manifest import SUBGRAPH, Manifest, StageSpec, TensorSpec
from runtime.errors import UserError
from runtime.prompts.synthetic import synthetic_tokens

from . import kernels, onnx, precision, quantization, tokenizer
from .networks.base import ExportSource
from .progress import Progress
from .publish import replacing
from .stage import Stage
from .verify import parity, parity_clip

GRAPHS = "graphs"
COMPARING = "comparing with torch"
PRECISIONS = ("fp32", "fp16", *quantization.QUANTIZERS)
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")

Report = Callable[[str], None]


def export_bundle(
    network: ExportSource,
    out: str | Path,
    name: str,
    *,
    precision: str = "fp32",
    tokenizer_source: str | Path | None = None,
    variants: Collection[str] | None = None,
    check: bool = True,
    clip: bool = True,
    backend: str = "ort",
    threads: int | None = None,
    compiled: bool = False,
    report: Report = lambda line: None,
) -> Path:
    """Export `network` as `out/name` and return that folder; a bundle of that name is replaced in one step.

    variants    variants to write besides "default"; None for all that the stages have
    check    compare every stage with torch, and (with `clip`) a whole clip; without it the graphs are not verified
    backend  the graphs are compared on this backend
    compiled add compiled kernels (`export.kernels`), where Triton is installed
    Raises ParityError or ExportError (nothing published), UserError for a bad name, precision or tokenizer.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    with replacing(Path(out), name) as folder:
        runner, rounded = create(backend, threads), folder.with_name(".rounded")
        if isinstance(runner, OrtBackend):  # of SAM 3, the trunk alone would keep 8 GB until the export ends
            runner.keeps_memory = False
        for graphs in (folder / GRAPHS, rounded / GRAPHS):
            graphs.mkdir(parents=True, exist_ok=True)
        job = ExportJob(network, folder, rounded, precision, variants, check, runner, threads, Progress(report))
        file = tokenizer_source and tokenizer.write(tokenizer_source, folder, network.vocabulary)
        for path, source in network.attachments.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / path)
        manifest, rows, frames = job.graphs(file or None, check and clip and network.clip is not None)
        if check:
            report(parity.format_table(rows, frames))
            report(f"compared in {job.progress.seconds.get(COMPARING, 0):.0f} s")
            parity.require_passed(rows, frames)
            (folder / parity.FILE).write_text(json.dumps(parity.as_json(rows, frames), indent=1) + "\n")
            manifest = replace(manifest, provenance={**manifest.provenance, "parity": parity.summary(rows, frames)})
        if compiled:
            kernels.add_kernels(folder, manifest, report)
        write_manifest(manifest, folder)
    return Path(out) / name


@dataclass(frozen=True, slots=True)
class ExportJob:
    """One export. `rounded`: folder of the graphs whose half results are all rounded (see `precision.emulated`)."""

    network: ExportSource
    folder: Path
    rounded: Path
    precision: str
    variants: Collection[str] | None
    check: bool
    runner: Backend
    threads: int | None
    progress: Progress

    def graphs(
        self, tokenizer: str | None, clip: bool
    ) -> tuple[Manifest, list[parity.StageComparison], list[parity.FrameComparison]]:
        """Write all graphs, with stricter limits where the clip misses its threshold.

        Returns the manifest without digests, the comparisons of stages and those of the clip, if `clip` asks for them.
        """
        network = self.network
        for limit in parity.STAGE_ERROR[self.precision]:
            specs, rows, bounds = self.stages(limit)
            manifest = Manifest(
                networks=network.networks,
                variant=network.variant,
                precision=self.precision,
                image_size=network.image_size,
                stages=specs,
                bounds=bounds,
                split_stages=network.split_stages,
                tokenizer=tokenizer,
                demo=network.demo,
                provenance={**network.provenance, "exported_with": versions(), "opset": onnx.OPSET},
            )
            frames: list[parity.FrameComparison] = []
            if clip:
                with self.progress.task(COMPARING, "whole clip with memory"):
                    frames = self.clip(manifest)
            if all(frame.passed for frame in frames):
                break
            self.progress.report(f"the clip misses its threshold with stages within {limit:g}")
        return manifest, rows, frames

    def stages(
        self, limit: float
    ) -> tuple[dict[str, StageSpec], list[parity.StageComparison], dict[str, tuple[int, int]]]:
        """Export every stage within `limit` of torch. Returns signatures by name, comparisons, bounds of symbols."""
        specs: dict[str, StageSpec] = {}
        rows: list[parity.StageComparison] = []
        bounds: dict[str, tuple[int, int]] = {}
        stages = list(self.network.stages())
        for number, stage in enumerate(stages, 1):
            start = time.perf_counter()
            for symbol, pair in stage.bounds.items():
                if bounds.setdefault(symbol, pair) != pair:
                    raise onnx.ExportError(
                        f"stage {stage.name}: bounds {pair} of {symbol!r} differ from "
                        f"{bounds[symbol]} in an earlier stage"
                    )
            specs[stage.name], found = self.stage(stage, limit)
            rows += found
            size = sum(p.stat().st_size for p in _files_of(self.folder, stage.name)) / 1e6
            error = f"  rel. L2 {max(r.error for r in found):.1e}" if found else ""
            self.progress.report(
                f"[{number:2}/{len(stages)}] {stage.name:20} {specs[stage.name].precision:14} {size:8.1f} MB "
                f"{time.perf_counter() - start:6.1f} s{error}"
            )
            if self.check:
                parity.require_passed(found)
        return specs, rows, bounds

    def stage(self, stage: Stage, limit: float) -> tuple[StageSpec, list[parity.StageComparison]]:
        """Write every variant of one stage. Returns its signature and, with `check`, its comparisons with torch."""
        wanted = set(stage.variants if self.variants is None else {"default", *self.variants} & stage.variants.keys())
        if self.precision in quantization.QUANTIZERS:
            wanted &= quantization.VARIANTS
        models: dict[str, ir.Model] = {}
        for variant in sorted(wanted, key=lambda variant: (variant not in ("default", "ort"), variant)):
            same = next((name for name in models if stage.variants[name] == stage.variants[variant]), None)
            if same:
                models[variant] = models[same]
                continue
            with self.progress.task("tracing", f"{stage.name} [{variant}]"):
                models[variant] = onnx.trace(stage, variant)
        if self.precision in quantization.QUANTIZERS and (done := self.quantized(stage, models, limit)):
            return done
        if self.precision == "fp16":
            spec, rows = self.choose_mixed_precision(stage, models, limit)
        else:
            spec, rows = _write_stage(stage, stage.spec, models, self.folder), []
        if not self.check:
            return spec, []
        return spec, [*rows, *self.compare(stage, spec, self.folder, limit)]

    def compare(self, stage: Stage, spec: StageSpec, folder: Path, limit: float) -> list[parity.StageComparison]:
        """Compare the graphs of one stage in `folder` with torch."""
        with self.progress.task(COMPARING, stage.name):
            return parity.compare_stage(stage, spec, folder, self.runner, limit)

    def choose_mixed_precision(
        self, stage: Stage, models: Mapping[str, ir.Model], limit: float
    ) -> tuple[StageSpec, list[parity.StageComparison]]:
        """Write the stage with the fastest policy whose error is within `limit`; float32 inside if none is.

        For CPUs, which have few half operators, it has a graph with float32 inside in any case.
        """
        signature = half_signature(stage.spec)
        half = {t.name for t in (*signature.inputs, *signature.outputs) if t.dtype == "float16"}
        for policy in (*precision.POLICIES, None):
            spec = replace(signature, precision=policy.name if policy else precision.FP32)
            model = precision.emulated(precision.to_half(models["default"], policy, half))
            rounded = _write_stage(stage, spec, {"default": model}, self.rounded)
            rows = self.compare(stage, rounded, self.rounded, limit)
            if all(row.passed for row in rows):
                break
        rows = [replace(row, what=f"{stage.name} [rounded]") for row in rows]
        converted = {variant: precision.to_half(model, policy, half) for variant, model in models.items()}
        if self.has_cpu_graph(stage):
            converted[precision.WIDE] = precision.widened(converted.get(precision.WIDE, converted["default"]))
        return _write_stage(stage, spec, converted, self.folder), rows

    def has_cpu_graph(self, stage: Stage) -> bool:
        """Tell whether a half bundle has a graph of the stage that computes in float32. Subgraphs run on GPUs only."""
        return (self.variants is None or precision.WIDE in self.variants) and stage.spec.role != SUBGRAPH

    def quantized(
        self, stage: Stage, models: Mapping[str, ir.Model], limit: float
    ) -> tuple[StageSpec, list[parity.StageComparison]] | None:
        """Write the stage with the fewest bits that are within `limit` of torch; None if it has to stay float32."""
        products = {variant: quantization.products(model) for variant, model in models.items()}
        if not stage.spec.int8_ok or not all(products.values()):
            return None
        for name, quantize in quantization.QUANTIZERS[self.precision].items():
            spec = replace(stage.spec, precision=name)
            converted = {variant: quantize(model, products[variant]) for variant, model in models.items()}
            for variant, model in converted.items():
                onnx.tidy(model, spec, variant)
            spec = _write_stage(stage, spec, converted, self.folder)
            if not self.check:
                return spec, []
            rows = self.compare(stage, spec, self.folder, limit)
            if all(row.passed for row in rows):
                return spec, rows
            worst = max(row.error for row in rows)
            self.progress.report(f"{stage.name}: {name.upper()} costs {worst:.1e}, allowed {limit:g}")
        self.progress.report(f"{stage.name} stays float32")
        return None

    def clip(self, manifest: Manifest) -> list[parity.FrameComparison]:
        """Compare a clip in torch with the runtime, which gets the rounded graphs of a half bundle."""
        text = manifest.text
        tokens = synthetic_tokens(text["vocabulary"], text["max_tokens"]) if text else []
        verbs = [1] if text and text.get("motion") and len(tokens) > 2 else []
        assert self.network.clip is not None
        want = list(self.network.clip(parity_clip.clip_frames(parity_clip.clip_length(manifest)), tokens, verbs))
        folder = self.folder
        if self.precision == "fp16":
            folder = self.rounded
            subgraphs = {name for split in manifest.split_stages.values() for name in split.subgraphs}
            stages = {
                name: replace(spec, files={"default": spec.files["default"]})
                for name, spec in manifest.stages.items()
                if name not in subgraphs
            }
            # neither tokenizer nor demonstration nor constants of kernels lie beside the rounded graphs
            manifest = replace(manifest, tokenizer=None, demo=None, stages=stages, split_stages={})
        write_manifest(manifest, folder)
        results = parity_clip.clip_in_child(folder, self.runner.name, self.threads)
        return parity.compare_clip(want, results, self.precision)


def half_signature(spec: StageSpec) -> StageSpec:
    """Return the signature in a half bundle: every float32 tensor without `keep_fp32` is float16.

    Tensors that the schedule reads on the host or compares with zero stay float32; so do pixels and points, which
    half would round again. It does not depend on the precision inside the stages, so a tensor has one type in all of
    them.
    """

    def half(tensor: TensorSpec) -> TensorSpec:
        keep = tensor.dtype != "float32" or tensor.keep_fp32
        return tensor if keep else replace(tensor, dtype="float16")

    return replace(spec, inputs=tuple(map(half, spec.inputs)), outputs=tuple(map(half, spec.outputs)))


def _write_stage(stage: Stage, spec: StageSpec, models: Mapping[str, ir.Model], folder: Path) -> StageSpec:
    files = onnx.save(models, folder / GRAPHS, stage.name)
    for variant, file in files.items():
        if variant == "default" or file != files["default"]:
            onnx.check(folder / GRAPHS / file, spec, variant)
    return replace(spec, files={variant: f"{GRAPHS}/{file}" for variant, file in files.items()})


def _files_of(folder: Path, stage: str) -> Iterator[Path]:
    return (path for path in (folder / GRAPHS).iterdir() if path.name.split(".")[0] == stage)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write the manifest with the sha256 of every other file."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"):
        files[path.relative_to(folder).as_posix()] = file_sha256(path)
    replace(manifest, files=files).dump(folder)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that shape the graphs."""
    found = {}
    for name in (*LIBRARIES, "samwise-runtime"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
