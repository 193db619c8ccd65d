"""Low latency for a bundle that was exported without it: `python -m export add-steps BUNDLE`.

Needs no checkpoint: the graphs `adapter_k_step` are made of the weights in the graphs `adapter_k`, and refer to their
files of weights. Every other graph of the bundle stays as it is, byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from runtime.backends import create
from runtime.bundle.manifest import STEP, Manifest
from runtime.errors import BundleError, UserError

from . import quantization
from .bundle import ExportJob, write_manifest
from .checkpoints.common import config_from
from .graph_weights import load_weights
from .models.samwise import Samwise, SamwiseConfig
from .networks import base, samwise
from .progress import Progress
from .publish import replacing
from .stage import Stage
from .verify import parity


def add_steps(folder: Path, report: Callable[[str], None] = lambda line: None) -> None:
    """Add the stages of low latency to a bundle with SAMWISE, in one step.

    Raises UserError for a bundle that cannot have them, BundleError for a damaged one, ParityError.
    """
    folder = Path(folder).resolve()
    manifest = Manifest.load(folder)
    found = list(_steps(folder, manifest))
    with replacing(folder.parent, folder.name) as work:
        shutil.copytree(folder, work, dirs_exist_ok=True)  # no links: onnx takes them for an attack
        (rounded := work.with_name(".rounded") / "graphs").mkdir(parents=True)
        source = base.describe("samwise", Samwise(_config(manifest)))
        job = ExportJob(
            source, work, rounded.parent, manifest.precision, None, True, create("ort", None), None, Progress(report)
        )
        specs, rows = dict(manifest.stages), []
        for stage in found:
            specs[stage.name], compared = job.stage(stage, parity.STAGE_ERROR[manifest.precision][0])
            parity.require_passed(compared)
            rows += compared
        report(parity.format_table(rows, []))
        parity.extend(work / parity.FILE, rows)
        bounds = {**manifest.bounds, **{symbol: pair for stage in found for symbol, pair in stage.bounds.items()}}
        write_manifest(replace(manifest, stages=specs, bounds={**bounds, **manifest.bounds}), work)


def _config(manifest: Manifest) -> SamwiseConfig:
    config: SamwiseConfig = config_from(SamwiseConfig, manifest.provenance["config"])
    return config


def _steps(folder: Path, manifest: Manifest) -> Iterator[Stage]:
    """Yield the step of every adapter, with the weights of its graph."""
    if "samwise" not in manifest.networks or manifest.networks["samwise"]["window"] <= samwise.MAX_WINDOW_WITHOUT_STEPS:
        raise UserError(f"{folder}: only bundles of SAMWISE with a window have low latency")
    if manifest.precision in quantization.QUANTIZERS or not isinstance(manifest.provenance.get("config"), dict):
        raise UserError(f"{folder}: its weights cannot be read back; export it again from the checkpoint")
    model = Samwise(_config(manifest))
    for p in model.parameters():
        torch.nn.init.normal_(p)
    for stage in samwise.stages(model):
        if stage.spec.role != samwise.ADAPTER or stage.name.endswith(STEP):
            continue
        if stage.name not in manifest.stages:
            raise BundleError(f"{folder}: stage {stage.name} is missing; export the bundle again")
        load_weights(stage, folder / manifest.stages[stage.name].files["default"])
        yield samwise.adapter_step(stage, model.config)
