"""What a bundle says about itself: tensors, stages, manifest.

`export/` writes a `Manifest`, `runtime/` reads it, and nothing else passes between the two. All sizes, thresholds and
names live here as data; code on either side never repeats them. Reading checks everything, so that a bad file is
refused with one line and not with a traceback three calls later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ..errors import BundleError
from . import schema as known_settings

FORMAT = 1
"""Version of the manifest. A reader refuses a larger number than its own."""

MANIFEST = "manifest.json"

LARGEST = 1 << 32
"""Most numbers that one tensor may have within the bounds; no real one comes near, and an honest machine cannot hold
it."""

DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output. A `str` in `shape` is a symbol whose bounds stand in `Manifest.bounds`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape in numbers. Raises KeyError for a symbol that `sizes` does not name."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.shape)


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Signature of one stage and the files that implement it.

    `files` maps a form of the stage to a path inside the bundle. Every stage has the form "default"; a stage that some
    backends want in another shape (memory attention with wide values for TensorRT) has further forms, and the backend
    picks by `Backend.forms`, an ordered preference.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(d for t in (*self.inputs, *self.outputs) for d in t.shape if isinstance(d, str))

    def input(self, name: str) -> TensorSpec:
        return next(t for t in self.inputs if t.name == name)

    def output(self, name: str) -> TensorSpec:
        return next(t for t in self.outputs if t.name == name)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole bundle. `settings` holds the numbers that a network's schedule needs (see `docs/architecture.md`)."""

    model: str
    variant: str
    precision: str
    image_size: int
    stages: Mapping[str, StageSpec]
    bounds: Mapping[str, tuple[int, int]]
    settings: Mapping[str, Any]
    format: int = FORMAT
    tokenizer: str | None = None
    demo: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every file of the bundle but the manifest itself, by path inside the bundle."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: checkpoint name and hash, versions of the exporting libraries, parity summary."""

    def dump(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check `folder/manifest.json`. Raises BundleError that names the file and the field."""
        path = Path(folder) / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BundleError(f"{folder}: no {MANIFEST} here; export a bundle with `python -m export`") from None
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise BundleError(f"{path}: not readable as JSON ({error}); export the bundle again") from None
        try:
            return _manifest(data)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None


def _need(data: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(data, dict):
        raise BundleError(f"{where} must be an object, not {type(data).__name__}")
    value = data.get(key)
    # bool is an int in Python and never what a size means
    if not isinstance(value, kind) or (
        isinstance(value, bool) and bool not in (kind if isinstance(kind, tuple) else (kind,))
    ):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise BundleError(f"{where}.{key} must be {names}, not {type(value).__name__}")
    return value


def _manifest(data: Any) -> Manifest:
    version = _need(data, "format", int, "manifest")
    if version > FORMAT:
        raise BundleError(f"format {version} is newer than this runtime knows ({FORMAT}); upgrade samwise-runtime")
    bounds = {}
    for symbol, pair in _need(data, "bounds", dict, "manifest").items():
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(type(v) is int for v in pair) and 0 <= pair[0] <= pair[1]
        ):
            raise BundleError(f"bounds.{symbol} must be [low, high]")
        bounds[symbol] = (pair[0], pair[1])
    stages = {name: _stage(name, s, bounds) for name, s in _need(data, "stages", dict, "manifest").items()}
    known_settings.check(_need(data, "settings", dict, "manifest"))
    size = _need(data, "image_size", int, "manifest")
    if not 16 <= size <= 8192:
        raise BundleError(f"manifest.image_size {size} is outside 16..8192")
    files = _need(data, "files", dict, "manifest")
    for name, digest in files.items():
        _inside(name, "files")
        if not isinstance(digest, str):
            raise BundleError(f"files.{name} must be a sha256")
    for stage in stages.values():
        for file in stage.files.values():
            if file not in files:
                raise BundleError(f"stages.{stage.name} names {file!r}, which is not among the bundle's files")
    optional = {}
    for key in ("tokenizer", "demo"):
        value = data.get(key)
        if value is not None:
            _inside(_need(data, key, str, "manifest"), key)
        optional[key] = value
    return Manifest(
        model=_need(data, "model", str, "manifest"),
        variant=_need(data, "variant", str, "manifest"),
        precision=_need(data, "precision", str, "manifest"),
        image_size=size,
        stages=stages,
        bounds=bounds,
        settings=_need(data, "settings", dict, "manifest"),
        format=version,
        files=files,
        provenance=_need(data, "provenance", dict, "manifest") if data.get("provenance") else {},
        **optional,
    )


def _stage(name: str, data: Any, bounds: Mapping[str, Any]) -> StageSpec:
    where = f"stages.{name}"
    files = _need(data, "files", dict, where)
    if "default" not in files:
        raise BundleError(f"{where}.files has no 'default' form")
    for file in files.values():
        _inside(file, where)
    return StageSpec(
        name=name,
        files=files,
        precision=_need(data, "precision", str, where),
        inputs=tuple(_tensor(t, f"{where}.inputs", bounds) for t in _need(data, "inputs", list, where)),
        outputs=tuple(_tensor(t, f"{where}.outputs", bounds) for t in _need(data, "outputs", list, where)),
    )


def _tensor(data: Any, where: str, bounds: Mapping[str, Any]) -> TensorSpec:
    name = _need(data, "name", str, where)
    dtype = _need(data, "dtype", str, where)
    if dtype not in DTYPES:
        raise BundleError(f"{where}.{name}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    shape = _need(data, "shape", list, where)
    for d in shape:
        if isinstance(d, str):
            if d not in bounds:
                raise BundleError(f"{where}.{name}: symbol {d!r} has no bounds")
        elif type(d) is not int or d < 0:
            raise BundleError(f"{where}.{name}: {d!r} is neither a size nor a symbol")
    if prod(d if isinstance(d, int) else max(bounds[d][1], 1) for d in shape) > LARGEST:
        raise BundleError(f"{where}.{name}: more than {LARGEST:,} numbers; the shape or its bounds are damaged")
    return TensorSpec(name, dtype, tuple(shape))


def _inside(file: Any, where: str) -> None:
    """A bundle never points outside its own folder."""
    if (
        not isinstance(file, str)
        or not file
        or not file.isprintable()
        or file.startswith(("/", "\\"))
        or ":" in file
        or ".." in file.replace("\\", "/").split("/")
    ):
        raise BundleError(f"{where}: {file!r} is not a path inside the bundle")
