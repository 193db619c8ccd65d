"""Engines of every stage of a network at its published size, built on a CPU: seconds, megabytes, scratch.

    python -m benchmarks.engine_table samwise base_plus [--out benchmarks/results/engines-samwise-base_plus.json]

Weights are random: they change neither time nor size. Needs TensorRT-RTX and the export's libraries, and no GPU.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.layers.hiera import PUBLISHED_TRUNKS
from export.tensorrt import build
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import Manifest


def network(name: str, variant: str, **text: int) -> tuple[Any, Any]:
    """Return (module of `export.networks`, model with random weights). `text`: sizes of SAMWISE's text tower.

    SAM 3 is published in one size, `large`; its `tiny` is that of the tests.
    """
    import torch

    from export.layers.roberta import TextConfig
    from export.models import sam2, sam3, samwise
    from export.models.sam import SamConfig
    from export.networks import sam2 as sam2_network
    from export.networks import sam3 as sam3_network
    from export.networks import samwise as samwise_network

    torch.manual_seed(0)
    if name == "sam3":
        return sam3_network, sam3.Sam3(sam3.Sam3Config() if variant == "large" else sam3.tiny_test_config())
    trunk = PUBLISHED_TRUNKS[variant]
    if name == "sam2":
        return sam2_network, sam2.Sam2(sam2.Sam2Config(SamConfig(hiera=trunk, pointer_positions=True)))
    tower = TextConfig(**text)
    steps = (tower.layers // 3, tower.layers * 2 // 3, tower.layers)
    sam = SamConfig(hiera=trunk, text_width=tower.width)
    return samwise_network, samwise.Samwise(samwise.SamwiseConfig(sam=sam, text=tower, text_stages=steps))


def half_graphs(
    stages: Iterable[Any],
    folder: Path,
    networks: Mapping[str, Any],
    variants: Sequence[str] = (),
    attachments: Mapping[str, Path] | None = None,
    split_stages: Mapping[str, Any] | None = None,
    variant: str = "half",
) -> Path:
    """Write a bundle of half graphs, of those `variants` that a stage has or of the one that TensorRT prefers, without
    parity checks. `attachments`: path inside the bundle -> file."""
    from export import bundle, onnx, precision

    (folder / "graphs").mkdir(parents=True)
    policy, specs = precision.POLICIES[0], {}
    bounds: dict[str, tuple[int, int]] = {}
    for stage in stages:
        signature = bundle.half_signature(stage.spec)
        half = {t.name for t in (*signature.inputs, *signature.outputs) if t.dtype == "float16"}
        wanted = {name: name for name in variants if name in stage.variants}
        wanted = wanted or {"default": next(name for name in build.VARIANTS if name in stage.variants)}
        models = {name: precision.to_half(onnx.trace(stage, of), policy, half) for name, of in wanted.items()}
        files = {name: f"graphs/{file}" for name, file in onnx.save(models, folder / "graphs", stage.name).items()}
        specs[stage.name] = replace(signature, precision=policy.name, files=files)
        bounds |= stage.bounds
    for path, source in (attachments or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / path)
    size = next(iter(networks.values()))["resize"]["max"]
    bundle.write_manifest(Manifest(networks, variant, "fp16", size, specs, bounds, split_stages or {}), folder)
    return folder


def table(folder: Path, library: build.Library) -> dict[str, Any]:
    """Build every stage of the bundle for every target; rows by stage."""
    entries = build.build_bundle(choose(folder), library)
    manifest = Manifest.load(folder)
    rows = {
        e.stage: {
            "seconds": e.seconds,
            "megabytes": round((folder / "engines" / e.file).stat().st_size / 1e6, 1),
            "scratch_megabytes": round(e.scratch / 1e6, 1),
            "largest": {s: manifest.bounds[s][1] for s in sorted(manifest.stages[e.stage].symbols)},
        }
        for e in entries
    }
    targets = [f"sm_{c}" for c in entries[0].capabilities]
    name = f"{library.name} {library.version}"
    return {"library": name, "precision": manifest.precision, "targets": targets, "stages": rows}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_table", description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("samwise", "sam2", "sam3"))
    parser.add_argument("variant", choices=tuple(PUBLISHED_TRUNKS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    library = build.Library("tensorrt_rtx")
    module, model = network(options.network, options.variant)
    with tempfile.TemporaryDirectory() as work:
        folder = half_graphs(module.stages(model), Path(work) / "bundle", module.settings(model))
        del model
        found = table(folder, library)
    name = f"engines-{options.network}-{options.variant}.json"
    out = options.out or Path(__file__).parent / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
