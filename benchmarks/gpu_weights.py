"""Bundles without their weights, and weights like them: numbers with the mean and deviation of each tensor.

Times do not depend on weights. Integers, small tensors and what is no tensor are kept as they are: they are tables of
positions, norms and shapes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.bundle import file_sha256
from runtime.bundle.manifest import Manifest

RECIPE = "weights.json"
KEPT = 4096
"""Bytes of a tensor that is kept at most."""


def without_weights(bundle: Path, out: Path) -> None:
    """Copy a bundle with a recipe in place of the large tensors of its `.data` files."""
    data = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*.data")}
    shutil.copytree(
        bundle, out, ignore=shutil.ignore_patterns("*.data", "engines", "kernels")
    )  # made for other devices
    tensors: dict[str, dict[int, tuple[int, str]]] = {name: {} for name in sorted(data)}
    for graph in sorted(bundle.rglob("*.onnx")):
        for file, offset, size, dtype in external_tensors(graph):
            tensors[(graph.parent / file).relative_to(bundle).as_posix()][offset] = size, dtype
    recipe: dict[str, Any] = {}
    for name, found in tensors.items():
        content = bytearray((bundle / name).read_bytes())
        drawn = []
        for offset, (size, dtype) in sorted(found.items()):
            if np.dtype(dtype).kind == "f" and size > KEPT:
                values = np.frombuffer(content, dtype, size // np.dtype(dtype).itemsize, offset).astype(np.float32)
                drawn.append([offset, size, dtype, float(values.mean()), float(values.std())])
                content[offset : offset + size] = bytes(size)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)  # the archive compresses zeros to nothing
        recipe[name] = drawn
    (out / RECIPE).write_text(json.dumps(recipe) + "\n")


def external_tensors(graph: Path) -> list[tuple[str, int, int, str]]:
    """Return (file, offset, size, dtype) of each tensor that a graph keeps in a file beside it."""
    import onnx

    found = []
    for tensor in onnx.load(str(graph), load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {entry.key: entry.value for entry in tensor.external_data}
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            size = int(where.get("length", int(np.prod(tensor.dims)) * dtype.itemsize))
            found.append((where["location"], int(where.get("offset", 0)), size, dtype.name))
    return found


def fill(bundle: Path) -> None:
    """Draw the tensors of the recipe, seeded, and enter the new digests into the manifest. Twice is harmless."""
    path = bundle / RECIPE
    if not path.exists():
        return
    rng = np.random.default_rng(0)
    recipe = json.loads(path.read_text())
    for name, drawn in recipe.items():
        content = bytearray((bundle / name).read_bytes())
        for offset, size, dtype, mean, deviation in drawn:
            values = rng.standard_normal(size // np.dtype(dtype).itemsize, np.float32) * deviation + mean
            content[offset : offset + size] = values.astype(dtype).tobytes()
        (bundle / name).write_bytes(content)
    manifest = Manifest.load(bundle)
    files = {name: file_sha256(bundle / name) if name in recipe else digest for name, digest in manifest.files.items()}
    replace(manifest, files={name: d for name, d in files.items() if (bundle / name).exists()}).dump(bundle)
    path.unlink()
