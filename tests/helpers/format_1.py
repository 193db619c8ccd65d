"""Bundles of manifest format 1, made from those of format 2."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OLD_NAMES = {
    "maskmem_features": "memory_slot",
    "maskmem_tpos_index": "memory_age",
    "obj_ptr": "pointer",
    "obj_ptrs": "pointers",
    "obj_ptr_tpos": "pointer_distance",
}


def manifest_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of format 1 for one of format 2, both as parsed JSON."""
    networks, settings = data["networks"], {}
    for name in sorted(networks, key=lambda name: name != "sam2"):  # what SAMWISE says stands at the top
        own = dict(networks[name])
        if name == "sam2":
            memory = own.pop("memory")
            part = {"memory": {"slots": memory["num_maskmem"], "pointers": memory["max_obj_ptrs"]}}
            settings["sam2"] = part | {"resample": own.pop("resample")}
            own.pop("no_object_logit")
        elif "memory" in own:
            memory = own.pop("memory")
            own["memory"] = {"slots": memory["num_maskmem"] - 1, "pointers": memory["max_obj_ptrs"] - 1}
        settings |= own
    if data["split_stages"]:
        settings["cuts"] = {
            name: {"kernel": split["kernel"], "parts": split["subgraphs"], "constants": split["constants"]}
            | split["sizes"]
            for name, split in data["split_stages"].items()
        }
    kept = {key: value for key, value in data.items() if key not in ("networks", "split_stages")}
    stages = {name: _stage(stage) for name, stage in data["stages"].items()}
    return kept | {"format": 1, "model": "+".join(networks), "settings": settings, "stages": stages}


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    tensors = {
        side: [
            {"name": OLD_NAMES.get(t["name"], t["name"]), "dtype": t["dtype"], "shape": t["shape"]} for t in stage[side]
        ]
        for side in ("inputs", "outputs")
    }
    return {key: stage[key] for key in ("name", "files", "precision")} | tensors


def downgrade(folder: Path) -> Path:
    """Rewrite the bundle in `folder` in format 1: manifest, names of tensors, digests. Returns `folder`."""
    import onnx

    path = folder / "manifest.json"
    data = manifest_of(json.loads(path.read_text()))
    for file in {file for stage in data["stages"].values() for file in stage["files"].values()}:
        model = onnx.load(folder / file, load_external_data=False)
        for node in model.graph.node:
            node.input[:] = [OLD_NAMES.get(name, name) for name in node.input]
            node.output[:] = [OLD_NAMES.get(name, name) for name in node.output]
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
            value.name = OLD_NAMES.get(value.name, value.name)
        content = model.SerializeToString(deterministic=True)
        (folder / file).write_bytes(content)
        data["files"][file] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    return folder
