"""Index of a bundle's engine files: what each was built from, and whether it may be loaded on this machine.

`python -m export.tensorrt.build` writes `engines/index.json` and one file per stage; the TensorRT backends read them.
An engine file fits one graph, one set of bounds, one library version and the GPUs it was built for; another one is
refused with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import BundleError
from .bundle import file_sha256
from .manifest import Manifest, StageSpec, weight_files

FOLDER, INDEX = "engines", "index.json"
FORMAT = 2


@dataclass(frozen=True, slots=True)
class EngineFile:
    """One entry of the index. `file` is a path inside the bundle's `engines/` folder."""

    stage: str
    variant: str
    library: str
    version: str
    capabilities: tuple[int, ...]
    """Compute capabilities without the dot: 89 is sm_89."""
    precision: str
    graph: str
    """`fingerprint` of its graph at the time of the build."""
    file: str
    scratch: int = 0
    """Bytes of activations and scratch according to the builder; large ones mean that attention was not fused."""
    seconds: float = 0.0
    verified: Mapping[str, Any] = field(default_factory=dict)
    """Compute capability -> result of `python -m export.verify` on such a GPU; empty before."""


def fingerprint(manifest: Manifest, spec: StageSpec, variant: str) -> str:
    """Return the sha256 of everything an engine depends on: graph, weights, precision, bounds of its symbols."""
    graph = spec.files[variant]
    parts = [
        manifest.files[graph],
        *map(manifest.files.get, weight_files(graph)),
        spec.precision,
        {s: list(manifest.bounds[s]) for s in sorted(spec.symbols)},
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read(bundle: Path) -> list[EngineFile]:
    """Return the entries of the bundle's index, none without an index. Raises BundleError that names the file."""
    path = Path(bundle) / FOLDER / INDEX
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise BundleError(
                f"{path}: format {data['format']} is not {FORMAT}; run `python -m export.tensorrt.build` again"
            )
        entries = [EngineFile(**{**e, "capabilities": tuple(e["capabilities"])}) for e in data["engines"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path}: not readable ({error}); run `python -m export.tensorrt.build` again") from None
    for entry in entries:
        if Path(entry.file).is_absolute() or ".." in Path(entry.file).parts:
            raise BundleError(
                f"{path}: {entry.file!r} is not a path inside the bundle; run `python -m export.tensorrt.build` again"
            )
    return entries


def write(bundle: Path, entries: Iterable[EngineFile]) -> None:
    """Write the index and renew the manifest's list of files, with the sha256 of each engine."""
    bundle = Path(bundle)
    folder = bundle / FOLDER
    folder.mkdir(exist_ok=True)
    entries = sorted(entries, key=lambda e: (e.library, e.version, e.stage, e.variant, e.capabilities))
    index = {"format": FORMAT, "engines": [asdict(e) for e in entries]}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    manifest = Manifest.load(bundle)
    files = {name: digest for name, digest in manifest.files.items() if not name.startswith(f"{FOLDER}/")}
    for name in (INDEX, *sorted({e.file for e in entries})):
        known = manifest.files.get(f"{FOLDER}/{name}") if name != INDEX else None
        files[f"{FOLDER}/{name}"] = known or file_sha256(folder / name)
    replace(manifest, files=files).dump(bundle)


def find(
    bundle: Path,
    manifest: Manifest,
    spec: StageSpec,
    variants: Collection[str],
    library: str,
    version: str,
    capability: int,
) -> EngineFile:
    """Return the engine file of a stage, of one of its `variants`, for this library and GPU.

    Raises BundleError with the reason why none fits.
    """
    again = f"run `python -m export.tensorrt.build {bundle} --backend {library}`"
    entries = [e for e in read(bundle) if e.library == library and e.stage == spec.name and e.variant in variants]
    if not entries:
        raise BundleError(f"{bundle}: stage {spec.name} has no {library} engine; {again}")
    fresh = [e for e in entries if e.graph == fingerprint(manifest, spec, e.variant)]
    if not fresh:
        raise BundleError(
            f"{bundle}: the {library} engine of stage {spec.name} is stale: its graph, precision or bounds "
            f"have changed since; {again}"
        )
    same = [e for e in fresh if e.version == version]
    if not same:
        found = ", ".join(sorted({e.version for e in fresh}))
        raise BundleError(
            f"{bundle}: stage {spec.name} was built with {library} {found}, this machine has {version}; {again}"
        )
    here = [e for e in same if capability in e.capabilities]
    if not here:
        found = ", ".join(f"sm_{c}" for c in sorted({c for e in same for c in e.capabilities}))
        raise BundleError(f"{bundle}: stage {spec.name} was built for {found}, this GPU is sm_{capability}; {again}")
    if not (Path(bundle) / FOLDER / here[0].file).is_file():
        raise BundleError(f"{bundle}: {here[0].file} is missing; {again}")
    return here[0]


def mark_verified(
    bundle: Path,
    manifest: Manifest,
    library: str,
    version: str,
    capability: int,
    found: Mapping[str, Mapping[str, float]],
) -> None:
    """Record in the index that the fresh engines of these stages agreed with ONNX Runtime on such a GPU.

    `found`: stage -> {"relative_error", "largest_error", "cosine"}, the worst of each.
    """
    entries = []
    for entry in read(bundle):
        spec = manifest.stages.get(entry.stage)
        fits = (entry.library, entry.version) == (library, version) and capability in entry.capabilities
        if fits and entry.stage in found and spec and entry.graph == fingerprint(manifest, spec, entry.variant):
            entry = replace(entry, verified={**entry.verified, str(capability): dict(found[entry.stage])})
        entries.append(entry)
    write(bundle, entries)
