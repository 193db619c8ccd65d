"""Manifest of a bundle: tensors, stages, settings of the networks.

`export/` writes a `Manifest`, `runtime/` reads it, and nothing else passes between the two. All sizes, thresholds and
attributes are data here; code on either side never repeats them. Reading checks everything (`schema.py`), so that a bad
file is refused with one line and not with a traceback three calls later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ..errors import BundleError
from . import schema
from .placeholder import describe_placeholder
from .schema import Group, array_of, flag, map_of, nullable, one_of, string, whole

FORMAT = 2
"""Version of the manifest. Newer ones are refused; older ones are converted by `python -m export upgrade BUNDLE`."""

MANIFEST = "manifest.json"

MAX_TENSOR_ELEMENTS = 1 << 32
"""Largest number of elements of one tensor within the bounds; a larger one means a damaged manifest."""

DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output. A `str` in `shape` is a symbol with bounds in `Manifest.bounds`.

    `keep_fp32`: stays float32 in a half-precision bundle. `bf16_ok`: may be computed with bfloat16 products.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    keep_fp32: bool = False
    bf16_ok: bool = True

    def resolve(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape in numbers. Raises KeyError for a symbol that `sizes` does not name."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.shape)


@dataclass(frozen=True, slots=True)
class StageSpec:
    """Signature and attributes of one stage, and the files that implement it.

    files      variant of the stage -> path inside the bundle. Every stage has the variant "default"; a stage that some
               backends want in another shape (memory attention with wide values for TensorRT) has further ones, and
               the backend picks by `Backend.variants`, an ordered preference.
    role       what the stage does; networks share roles, and each is one file in `export/stages/`
    attention  holds attention that a backend may fuse
    bf16_ok    its products may be bfloat16 where a backend offers that as an approximation
    int8_ok    its products may be 8-bit integers in an INT8 bundle
    typical    sizes of symbols that an engine is tuned for; the largest one where none is given
    stride     image pixels per position of its feature map, along one side; None without one
    graph_safe  whether it may be recorded as a CUDA graph; None: as bundles of earlier versions (`runtime.models`)
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    role: str = ""
    attention: bool = False
    bf16_ok: bool = False
    int8_ok: bool = True
    typical: Mapping[str, int] = field(default_factory=dict)
    stride: int | None = None
    graph_safe: bool | None = None

    @property
    def symbols(self) -> frozenset[str]:
        """Symbols in the shapes of its tensors."""
        return frozenset(d for t in (*self.inputs, *self.outputs) for d in t.shape if isinstance(d, str))

    def input(self, name: str) -> TensorSpec:
        """Return the input of this name."""
        return next(t for t in self.inputs if t.name == name)

    def output(self, name: str) -> TensorSpec:
        """Return the output of this name."""
        return next(t for t in self.outputs if t.name == name)


SUBGRAPH = "attention_subgraph"
"""Role of a part of a split stage."""

STEP = "_step"
"""Ending of the names of stages that compute one frame of low latency, on the weights of the stage without it."""


def weight_files(graph: str) -> tuple[str, ...]:
    """Return the paths of the files that may hold the weights of a graph `stage[.variant].onnx`, its own first."""
    folder, _, file = graph.rpartition("/")
    stage = file.split(".")[0]
    names = dict.fromkeys((stage, stage.removesuffix(STEP)))
    return tuple(f"{folder}/{name}.data".lstrip("/") for name in names)


@dataclass(frozen=True, slots=True)
class SplitStageSpec:
    """A stage that a compiled kernel can run part of.

    subgraphs  stages of the manifest that run before, between and after the launches, in this order
    constants  .npz file of the kernel's constant arguments
    tensors    role of a tensor in the kernel's schedule -> its name in the stage and its subgraphs; `{layer}` stands
               for the number of the layer
    sizes      numbers that the kernel needs besides the shapes of its tensors
    """

    kernel: str
    subgraphs: tuple[str, ...]
    constants: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole bundle. `networks` holds the settings of each network by its name (see `docs/architecture.md`)."""

    networks: Mapping[str, Mapping[str, Any]]
    variant: str
    precision: str
    image_size: int
    stages: Mapping[str, StageSpec]
    bounds: Mapping[str, tuple[int, int]]
    split_stages: Mapping[str, SplitStageSpec] = field(default_factory=dict)
    format: int = FORMAT
    tokenizer: str | None = None
    demo: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of every file of the bundle but the manifest itself, by path inside the bundle."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the bundle: checkpoint name and hash, versions of the exporting libraries, parity summary."""

    @property
    def network_names(self) -> str:
        """Names of the networks, joined by `+`: for display."""
        return "+".join(self.networks)

    @property
    def text(self) -> Mapping[str, Any] | None:
        """`text` settings of the network that takes sentences, None for a bundle without one."""
        return next((settings["text"] for settings in self.networks.values() if "text" in settings), None)

    def dump(self, folder: Path) -> None:
        """Write `manifest.json` into `folder`. The order of networks and stages is kept."""
        data = asdict(self)
        for stage in data["stages"].values():
            if stage["graph_safe"] is None:
                del stage["graph_safe"]
        (folder / MANIFEST).write_text(json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check `folder/manifest.json`. Raises BundleError that names the file and the field."""
        path = Path(folder) / MANIFEST
        try:
            data = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise BundleError(f"{folder}: no {MANIFEST} here; export a bundle with `python -m export`") from None
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            unreadable = f"not readable as JSON ({error}); export the bundle again"
            raise BundleError(f"{path}: {describe_placeholder(path) or unreadable}") from None
        try:
            _VERSION(data, "manifest")
            if data["format"] < FORMAT:
                raise BundleError(
                    f"format {data['format']} is older than this runtime's ({FORMAT}); "
                    f"convert it: python -m export upgrade {folder}"
                )
            return _manifest(data)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from None


def _dimension(value: Any, where: str) -> None:
    if not isinstance(value, str) and (type(value) is not int or value < 0):
        raise BundleError(f"{where}: {value!r} is neither a size nor a symbol")


def _bounds(value: Any, where: str) -> None:
    whole_pair = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
    if not whole_pair or not 0 <= value[0] <= value[1]:
        raise BundleError(f"{where} must be [low, high]")


_VERSION = Group({"format": whole(1, 1 << 31)})
_TENSOR = Group(
    {"name": string, "dtype": one_of(*DTYPES), "shape": array_of(_dimension), "keep_fp32": flag, "bf16_ok": flag}
)
_STAGE = Group(
    {
        "precision": string,
        "files": map_of(schema.path),
        "inputs": array_of(_TENSOR),
        "outputs": array_of(_TENSOR),
        "role": string,
        "attention": flag,
        "bf16_ok": flag,
        "int8_ok": flag,
        "typical": map_of(whole(0, 1 << 31)),
        "stride": nullable(whole(1, 8192)),
        "graph_safe": flag,
    },
    optional=("graph_safe",),
)
_SPLIT_STAGE = Group(
    {
        "kernel": string,
        "subgraphs": array_of(string),
        "constants": schema.path,
        "tensors": map_of(string),
        "sizes": map_of(whole(1, 1 << 31)),
    }
)
_SCHEMA = Group(
    {
        "networks": schema.networks,
        "variant": string,
        "precision": string,
        "image_size": whole(16, 8192),
        "bounds": map_of(_bounds),
        "stages": map_of(_STAGE),
        "split_stages": map_of(_SPLIT_STAGE),
        "tokenizer": nullable(schema.path),
        "demo": nullable(schema.path),
        "files": map_of(string, key=schema.path),
        "provenance": map_of(lambda value, where: None),
    },
    optional=("tokenizer", "demo", "provenance"),
)


def _manifest(data: Any) -> Manifest:
    """Check the parsed JSON, and its parts against each other."""
    if data["format"] > FORMAT:
        raise BundleError(
            f"format {data['format']} is newer than this runtime knows ({FORMAT}); upgrade samwise-runtime"
        )
    _SCHEMA(data, "manifest")
    files, bounds = data["files"], {symbol: (low, high) for symbol, (low, high) in data["bounds"].items()}
    stages = {name: _stage(name, stage, bounds, files) for name, stage in data["stages"].items()}
    split = {name: _split_stage(name, entry, stages, files) for name, entry in data["split_stages"].items()}
    plain = ("networks", "variant", "precision", "image_size", "format")
    optional = {key: data[key] for key in ("tokenizer", "demo", "provenance") if data.get(key) is not None}
    return Manifest(
        **{key: data[key] for key in plain}, stages=stages, bounds=bounds, split_stages=split, files=files, **optional
    )


def _stage(name: str, data: Any, bounds: Mapping[str, tuple[int, int]], files: Mapping[str, str]) -> StageSpec:
    where = f"manifest.stages.{name}"
    if "default" not in data["files"]:
        raise BundleError(f"{where}.files has no variant 'default'")
    for file in data["files"].values():
        if file not in files:
            raise BundleError(f"{where} names {file!r}, which is not among the bundle's files")
    inputs, outputs = (
        tuple(_tensor(t, f"{where}.{side}", bounds) for t in data[side]) for side in ("inputs", "outputs")
    )
    plain = ("files", "precision", "role", "attention", "bf16_ok", "int8_ok", "typical", "stride")
    attributes = {key: data[key] for key in plain}
    return StageSpec(name, inputs, outputs, **attributes, graph_safe=data.get("graph_safe"))


def _tensor(data: Any, where: str, bounds: Mapping[str, tuple[int, int]]) -> TensorSpec:
    name, shape = data["name"], data["shape"]
    for d in shape:
        if isinstance(d, str) and d not in bounds:
            raise BundleError(f"{where}.{name}: symbol {d!r} has no bounds")
    if prod(d if isinstance(d, int) else max(bounds[d][1], 1) for d in shape) > MAX_TENSOR_ELEMENTS:
        raise BundleError(
            f"{where}.{name}: more than {MAX_TENSOR_ELEMENTS:,} elements; the shape or its bounds are damaged"
        )
    return TensorSpec(name, data["dtype"], tuple(shape), data["keep_fp32"], data["bf16_ok"])


def _split_stage(name: str, data: Any, stages: Mapping[str, StageSpec], files: Mapping[str, str]) -> SplitStageSpec:
    where = f"manifest.split_stages.{name}"
    for stage in (name, *data["subgraphs"]):
        if stage not in stages:
            raise BundleError(f"{where}: {stage!r} is not among the bundle's stages")
    if data["constants"] not in files:
        raise BundleError(f"{where} names {data['constants']!r}, which is not among the bundle's files")
    return SplitStageSpec(data["kernel"], tuple(data["subgraphs"]), data["constants"], data["tensors"], data["sizes"])
