"""Conversion of a format 1 bundle to format 2, in place: `python -m export upgrade BUNDLE`.

Needs `onnx`, no checkpoint and no torch. The manifest is converted, tensors are renamed in the graphs, and every other
file is kept byte for byte; the result replaces the bundle in one step. The tables here are what format 1 left to code:
they belong to bundles of that format and are not extended.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runtime.bundle import engine_index
from runtime.bundle.bundle import Bundle, file_sha256
from runtime.bundle.manifest import FORMAT, MANIFEST, SUBGRAPH, Manifest
from runtime.errors import BundleError, SamwiseRuntimeError, UserError, fail
from runtime.models import check_networks

from .publish import replacing

RENAMED = {"memory_slot": "maskmem_features", "memory_age": "maskmem_tpos_index"}
RENAMED |= {"pointer": "obj_ptr", "pointers": "obj_ptrs", "pointer_distance": "obj_ptr_tpos"}
"""Tensors: name in format 1 -> name in SAM 2's code."""

ENGINE_INDEX = f"{engine_index.FOLDER}/{engine_index.INDEX}"

KEPT_FLOAT = frozenset({"pixels", "score", "iou", "ious", "decision", "points", "obj_ptr_tpos", "mask"})
FINE_MAPS = frozenset({"high_res_0", "high_res_1"})
TYPICAL = {"objects": 1, "maps": 1, "pictures": 1, "tokens": 16, "prompt_tokens": 4}

TRUNK = {"attention": True, "bf16_ok": True}
STAGES: Mapping[str, Mapping[str, Any]] = {
    **{f"hiera_{i}": {"role": "hiera", "stride": 8 << i, **TRUNK} for i in range(3)},
    **{f"text_{i}": {"role": "text_encoder"} for i in range(3)},
    **{f"adapter_{i}": {"role": "cross_modal_adapter", "attention": True, "stride": 8 << i} for i in range(3)},
    "neck": {"role": "neck", "stride": 16},
    "text_prompt": {"role": "prompt_encoder", "int8_ok": False},
    "memory_attention": {"role": "memory_attention", "stride": 16, **TRUNK},
    "mask_decoder": {"role": "mask_decoder", "stride": 16},
    "conditional_memory": {"role": "conditional_memory", "int8_ok": False, "stride": 16},
    "memory_encoder": {"role": "memory_encoder", "stride": 16},
    "image_encoder": {"role": "image_encoder", "stride": 16, **TRUNK},
    "prompt_encoder": {"role": "prompt_encoder", "int8_ok": False},
    "mask_prompt": {"role": "mask_prompt", "int8_ok": False},
    "prompt_decoder": {"role": "mask_decoder", "stride": 16},
    "prompt_memory_encoder": {"role": "memory_encoder", "stride": 16},
    "image": {"role": "image_encoder", "bf16_ok": True, "stride": 16},
    "text": {"role": "text_encoder"},
    "fuse": {"role": "fusion", "stride": 16},
}
"""Attributes of the stages of format 1; those of `StageSpec` where nothing is given."""

PART = {"role": SUBGRAPH, "attention": True}


def upgrade(folder: Path) -> list[str]:
    """Convert the bundle in `folder` and return the names of the stages whose graphs changed.

    Raises UserError for a bundle of another format and BundleError for a damaged one, which stays as it is.
    """
    folder = Path(folder).resolve()
    data = _read(folder)
    try:
        manifest, graphs = convert(data), _graphs(data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BundleError(
            f"{folder / MANIFEST}: not a whole manifest of format 1 ({type(error).__name__}: {error}); "
            "export the bundle again"
        ) from None
    _verify(folder, data["files"])
    changed = set()
    with replacing(folder.parent, folder.name) as work:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            renamed = rename_tensors(path) if name in graphs else None
            if renamed is not None:
                target.write_bytes(renamed)
                manifest["files"][name] = file_sha256(target)
                changed.update(graphs[name])
            elif name == ENGINE_INDEX:
                target.write_bytes(engine_index_of(path))
                manifest["files"][name] = file_sha256(target)
            elif name != MANIFEST:
                _link(path, target)
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        upgraded = Manifest.load(work)
        check_networks(Bundle(work, upgraded))
        upgraded.dump(work)
    return sorted(changed)


def _read(folder: Path) -> dict[str, Any]:
    """Parse the manifest. Raises UserError, BundleError."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["format"]
    except FileNotFoundError:
        raise UserError(f"{folder}: no {MANIFEST} here; give the folder of a bundle") from None
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: not readable as a manifest ({error}); export the bundle again") from None
    if version != 1:
        reason = "nothing to convert" if version == FORMAT else "only format 1 can be converted"
        raise UserError(f"{folder}: the bundle has format {version}; {reason}")
    return data


def _verify(folder: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path}: missing from the bundle; copy it again or export the bundle again")
        if file_sha256(path) != digest:
            raise BundleError(f"{path}: altered since the export (sha256 differs); copy it again or export again")


def _link(path: Path, target: Path) -> None:
    """Give a file that does not change its place in the new folder, without a copy where the file system allows it."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


def convert(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of format 2 for one of format 1; the digests of renamed graphs are still the old ones."""
    settings = data["settings"]
    split = {name: _split_stage(name, cut, data["stages"]) for name, cut in settings.get("cuts", {}).items()}
    subgraphs = {name for entry in split.values() for name in entry["subgraphs"]}
    memory = settings.get("memory") or settings.get("sam2", {}).get("memory") or {}
    typical = TYPICAL | {symbol: memory[symbol] for symbol in ("slots", "pointers") if symbol in memory}
    kept = ("variant", "precision", "image_size", "bounds", "files", "tokenizer", "demo", "provenance")
    return {
        "format": FORMAT,
        "networks": _networks(data["model"].split("+"), settings, data["image_size"]),
        "stages": {
            name: _stage(name, stage, PART if name in subgraphs else STAGES.get(name, {}), typical)
            for name, stage in data["stages"].items()
        },
        "split_stages": split,
        **{key: data[key] for key in kept if data.get(key) is not None},
    }


def _networks(names: Iterable[str], settings: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Complete settings of each network out of the shared ones of format 1."""
    found = {}
    for name in names:
        own = {key: value for key, value in settings.items() if key not in ("sam2", "cuts")}
        if name == "samwise":
            slots, pointers = settings["memory"]["slots"], settings["memory"]["pointers"]
            own["memory"] = {"num_maskmem": slots + 1, "max_obj_ptrs": pointers + 1}
        elif name == "sam2":
            part = settings["sam2"]
            own = {"resize": {"rule": "square", "short": image_size, "max": image_size}, "resample": part["resample"]}
            own |= {"mean": settings["mean"], "std": settings["std"], "no_object_logit": -1024.0}
            own["memory"] = {"num_maskmem": part["memory"]["slots"], "max_obj_ptrs": part["memory"]["pointers"]}
        found[name] = own
    return found


def _stage(
    name: str, stage: Mapping[str, Any], attributes: Mapping[str, Any], typical: Mapping[str, int]
) -> dict[str, Any]:
    tensors = {side: [_tensor(t) for t in stage[side]] for side in ("inputs", "outputs")}
    symbols = {d for side in tensors.values() for t in side for d in t["shape"] if isinstance(d, str)}
    defaults = {"role": "", "attention": False, "bf16_ok": False, "int8_ok": True, "stride": None}
    sizes = {"typical": {symbol: size for symbol, size in typical.items() if symbol in symbols}}
    kept = {"name": name, "files": stage["files"], "precision": stage["precision"]}
    return {**kept, **tensors, **defaults, **attributes, **sizes}


def _tensor(tensor: Mapping[str, Any]) -> dict[str, Any]:
    name = RENAMED.get(tensor["name"], tensor["name"])
    attributes = {"keep_fp32": name in KEPT_FLOAT or name.endswith("logits"), "bf16_ok": name not in FINE_MAPS}
    return {"name": name, "dtype": tensor["dtype"], "shape": tensor["shape"], **attributes}


def _split_stage(name: str, cut: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the entry of a split stage; format 1 gave tensors their roles by position."""
    entry = {"kernel": cut["kernel"], "subgraphs": cut["parts"], "constants": cut["constants"]}
    if cut["kernel"] == "window_attention":
        first, last = (stages[part] for part in cut["parts"])
        tensors = (*stages[name]["inputs"][:2], first["outputs"][0], last["inputs"][3])
        roles = dict(zip(("vision", "text", "narrow", "selected"), (t["name"] for t in tensors), strict=True))
        return {**entry, "tensors": roles, "sizes": {"patch": cut["patch"]}}
    whole = ("embedding", "map_index", "memory", "memory_age", "pointers", "conditioned", "ages")
    roles = {RENAMED.get(tensor, tensor): RENAMED.get(tensor, tensor) for tensor in whole}
    roles |= {role: f"{role}_{{layer}}" for role in ("residual", "queries", "attended")}
    return {**entry, "tensors": roles, "sizes": {}}


def _graphs(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """Map each graph file to the stages that have it."""
    found: dict[str, list[str]] = {}
    for name, stage in data["stages"].items():
        for file in stage["files"].values():
            found.setdefault(file, []).append(name)
    return found


def rename_tensors(path: Path) -> bytes | None:
    """Return the graph with its inputs and outputs renamed, None where no name changes. Weights are not loaded."""
    try:
        import onnx
    except ImportError:
        raise UserError("the conversion needs onnx: pip install 'samwise-runtime[export]'") from None
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own types
        raise BundleError(f"{path}: not readable as a graph ({error}); export the bundle again") from None
    graph = model.graph
    names = {RENAMED[v.name]: v.name for v in (*graph.input, *graph.output) if v.name in RENAMED}
    if not names:
        return None
    table = {old: new for new, old in names.items()} | {new: f"{new}_inner" for new in names}
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = table.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [table.get(name, name) for name in node.input]
        node.output[:] = [table.get(name, name) for name in node.output]
    return model.SerializeToString(deterministic=True)


def engine_index_of(path: Path) -> bytes:
    """Return the index of built engines in its present format: `form` of a graph is now its `variant`."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["engines"]
        entries = [{"variant" if key == "form" else key: value for key, value in e.items()} for e in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: not readable ({error}); remove the folder engines and build again") from None
    return (json.dumps({"format": engine_index.FORMAT, "engines": entries}, indent=1) + "\n").encode()


def stale_engines(folder: Path, changed: Iterable[str]) -> list[str]:
    """Return the names of changed stages that have built engines."""
    return sorted(set(changed) & {entry.stage for entry in engine_index.read(folder)})


def run(bundle: Path) -> int:
    """Convert one bundle and print its stale engines; return the exit code."""
    try:
        changed = upgrade(bundle)
        print(f"{bundle}: converted to format {FORMAT}; {len(changed)} stages have renamed tensors")
        if stale := stale_engines(bundle, changed):
            build = f"python -m export.tensorrt.build {bundle} --backend B"
            print(f"engines of {', '.join(stale)} are stale; run `{build}`")
        return 0
    except SamwiseRuntimeError as error:
        return fail(error)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; the bundle is unchanged", file=sys.stderr)
        return 1
