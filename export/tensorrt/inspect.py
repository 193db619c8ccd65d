"""Layers of built engines: `python -m export.tensorrt.inspect engines/NAME --backend tensorrt|tensorrt_rtx`.

Prints the number, kinds and types of the layers per stage and writes the library's full report (`STAGE.layers.json`:
layers, tactics, tensors) to `--out`. Needs the GPU that the engines are for: both libraries read an engine only there.
`export.tensorrt.build` requests the detail.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.backends import create
from runtime.backends.base import Backend
from runtime.backends.trt import TensorRtBackend
from runtime.bundle.bundle import Bundle, choose
from runtime.errors import InternalError, SamwiseRuntimeError, UserError, fail

TYPES = {name: name for name in ("bfloat16", "int8", "int32", "int64", "bool")}
TYPES |= {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16"}
TYPES |= {"bf16": "bfloat16", "fp8": "float8"}
"""Spellings of types in "Format/Datatype", which differ between releases."""

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine. `type` is UNKNOWN where the engine was built without detail; `tactic` may be empty."""

    name: str
    type: str
    tactic: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def precision(self) -> str:
        """Widest floating type that it reads or writes, else the first type."""
        kinds = {*self.inputs, *self.outputs}
        return next(
            (kind for kind in ("float32", "bfloat16", "float16", "float8", "int8") if kind in kinds),
            min(kinds, default=UNKNOWN),
        )


def datatype(tensor: Any) -> str:
    """Return the type of a tensor in the inspector's report as a manifest spells it; UNKNOWN without one."""
    text = str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "") if isinstance(tensor, dict) else ""
    words = text.lower().replace(",", " ").split()
    return next((TYPES[word] for word in reversed(words) if word in TYPES), UNKNOWN)


def layers(account: str) -> list[Layer]:
    """Parse the JSON of an engine inspector. Raises UserError for another format."""
    try:
        found = json.loads(account)["Layers"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"the engine inspector's output is not understood ({error}); this version of the library is not known"
        ) from None
    return [_layer(item) for item in found]


def _layer(item: Any) -> Layer:
    if not isinstance(item, dict):  # built without detail: names alone
        return Layer(str(item), UNKNOWN, "", (), ())
    tactic = item.get("TacticName") or item.get("TacticValue") or ""
    sides = (tuple(datatype(tensor) for tensor in item.get(side) or ()) for side in ("Inputs", "Outputs"))
    return Layer(str(item.get("Name", "")), str(item.get("LayerType", UNKNOWN)), str(tactic), *sides)


def account(stage: Any, trt: Any) -> str:
    """Return the library's JSON report on a loaded `EngineStage`."""
    inspector = stage.engine.create_engine_inspector()
    inspector.execution_context = stage.context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def summary(stage: str, found: Sequence[Layer]) -> str:
    """Return one line: number of layers by type and by precision."""
    kinds = " ".join(f"{kind} {n}" for kind, n in Counter(layer.type for layer in found).most_common(4))
    types = " ".join(f"{kind} {n}" for kind, n in Counter(layer.precision for layer in found).most_common())
    if found and all(layer.type == UNKNOWN for layer in found):
        return f"{stage:22} {len(found):4} layers; names only: build it again with `python -m export.tensorrt.build`"
    return f"{stage:22} {len(found):4} layers  {types:40} {kinds}"


def table(found: Iterable[Layer]) -> str:
    """Return one line per layer."""
    return "\n".join(f"  {l.precision:9} {l.type:16} {l.tactic[:60]:60} {l.name[:100]}" for l in found)  # noqa: E741


def inspect_bundle(
    bundle: Bundle,
    backend: Backend | TensorRtBackend,
    stages: Collection[str] | None = None,
    out: Path | None = None,
    full: bool = False,
    report: Any = print,
) -> dict[str, list[Layer]]:
    """Return the layers of every stage's engine (or of those named) by stage; write the library's JSON to `out`."""
    if not isinstance(backend, TensorRtBackend):
        raise UserError(f"backend {backend.name!r} has no engines; choose tensorrt or tensorrt_rtx")
    unknown = sorted(set(stages or ()) - set(bundle.manifest.stages))
    if unknown:
        raise UserError(f"{bundle.folder}: no stage {unknown[0]!r}; it has {', '.join(bundle.manifest.stages)}")
    found = {}
    for name, spec in bundle.manifest.stages.items():
        if stages and name not in stages:
            continue
        variant = next((v for v in backend.variants if v in spec.files), "default")
        text = account(backend.load(bundle.folder / spec.files[variant], spec), backend.module)
        found[name] = layers(text)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.layers.json").write_text(text)
        report(summary(name, found[name]))
        if full:
            report(table(found[name]))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m export.tensorrt.inspect", description="Show the contents of built engines."
    )
    parser.add_argument("bundle", metavar="engines/NAME")
    parser.add_argument("--backend", required=True, choices=("tensorrt", "tensorrt_rtx"))
    parser.add_argument("--stage", action="append", metavar="NAME", help="this stage only; may be repeated")
    parser.add_argument("--layers", action="store_true", help="one line per layer")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the library's full report as JSON")
    parser.add_argument("--model", help="name of the bundle or of the network, where the folder holds several")
    options = parser.parse_args(arguments)
    try:
        inspect_bundle(
            choose(options.bundle, options.model), create(options.backend), options.stage, options.out, options.layers
        )
        return 0
    except OSError as error:
        return fail(InternalError(f"cannot write into {options.out} ({error.strerror or error})"))
    except SamwiseRuntimeError as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(main())
