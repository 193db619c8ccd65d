"""Reading of checkpoint files: torch's formats, safetensors, shards and folders. No code of a file runs."""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.bundle.placeholder import describe_placeholder, describe_text
from runtime.errors import UserError, summarize

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
SHARD = re.compile(r"(.+-)(\d{5})-of-(\d{5})(\.\w+)")

PLAIN_OBJECTS = [
    *(argparse.Namespace, pathlib.PosixPath, np.dtype, np.float64(0).__reduce__()[0]),
    *{type(np.dtype(code)) for code in "?bhilBHILefd"},
]
"""Types beside tensors that trainings save and that run no code: arguments, paths, NumPy's numbers."""

FORMATS = (
    (rb"\x08.[\x12\x1a\x22\x3a]", "an ONNX graph; give the PyTorch weights from which it was exported"),
    (rb"ftrt", "a TensorRT engine file; give the PyTorch weights"),
    (rb"\x89HDF", "an HDF5 file (of Keras or MATLAB); give the PyTorch weights"),
    (rb"GGUF", "a GGUF file; give the PyTorch weights"),
    (rb"\x93NUMPY", "an array of NumPy; give the PyTorch weights"),
    (rb"\x1f\x8b|BZh|7z\xbc\xaf|Rar!|\xfd7zXZ|\x28\xb5\x2f\xfd", "compressed; unpack it and give the checkpoint in it"),
    (rb".{257}ustar", "a tar archive; unpack it and give the checkpoint in it"),
    (rb"\0{512}", "zeros, as an interrupted download leaves them; download it again"),
)
"""Pattern of the first bytes of a file that torch cannot read -> what the file is."""


def read_file(path: Path) -> Any:
    """Read a file, or all weights of a folder in Hugging Face's layout. Raises UserError."""
    files = weight_files(path)
    if len(files) == 1:
        return _read_one(files[0])
    merged: dict[Any, Any] = {}
    for file in files:
        data = _read_one(file)
        if not isinstance(data, Mapping):
            raise UserError(f"{file}: shard contains no named tensors; download it again")
        merged |= data
    return merged


def weight_files(path: Path) -> list[Path]:
    """Return the files of the checkpoint at `path`: a file, a folder, or the index of shards. Raises UserError."""
    if path.is_dir():
        names = [name + end for name in WEIGHTS for end in ("", INDEX)]
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None and (shards := _shards_without_index(path)):
            return shards
        if found is None:
            raise UserError(f"{path}: a folder with no such file as {' or '.join(names)}; {_advice(path)}")
        path = found
    if not path.is_file():
        missing = describe_placeholder(path) or "no such file"
        raise UserError(f"{path}: {missing}; give the path of a checkpoint (.pth or .pt)")
    if path.name.endswith(INDEX):
        return _shards(path)
    if (match := SHARD.fullmatch(path.name)) and int(match[3]) > 1:
        count = int(match[3])
        others = [f"{match[1]}{i:05}-of-{match[3]}{match[4]}" for i in range(1, count + 1) if i != int(match[2])]
        index = f" and the {INDEX.lstrip('.')} file" if list(path.parent.glob("*" + INDEX)) else ""
        raise UserError(f"{path}: one shard of {count}; give the folder, with {some(others)}{index}")
    return [path]


def _shards_without_index(folder: Path) -> list[Path]:
    """Return the shards in a folder without other weights; their names tell how many there are. Raises UserError."""
    shards = [match for file in sorted(folder.iterdir()) if (match := SHARD.fullmatch(file.name))]
    if not shards or _whole_files(folder):
        return []
    stem, _, total, suffix = max((match.groups() for match in shards), key=lambda found: found[3])  # .safetensors first
    names = [f"{stem}{number:05}-of-{total}{suffix}" for number in range(1, int(total) + 1)]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: lacks {some(missing)}, {len(missing)} of {len(names)} shards; download the whole repository"
        )
    return [folder / name for name in names]


def _whole_files(folder: Path) -> list[str]:
    """Return the names of the files of a folder that may be whole checkpoints."""
    return sorted(f.name for f in folder.iterdir() if f.suffix in SUFFIXES and not SHARD.fullmatch(f.name))


def some(names: list[str]) -> str:
    """List up to three names and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _advice(folder: Path) -> str:
    """Say how to give the checkpoint that may be in a folder without the usual file names."""
    if (folder / "manifest.json").is_file():
        return "this is a bundle, which has been exported"
    if (folder / ".metadata").is_file():
        return "convert a distributed checkpoint: python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
    if (folder / "zero_to_fp32.py").is_file():
        return "join a checkpoint of DeepSpeed with the zero_to_fp32.py that is in it"
    files = _whole_files(folder)
    return f"give one of its files: {some(files)}" if files else "download the whole repository, config.json included"


def _shards(index: Path) -> list[Path]:
    """Return the shards that an index names. Raises UserError for a damaged index and for missing shards."""
    try:
        names = sorted({str(Path(name)) for name in json.loads(index.read_bytes())["weight_map"].values()})
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("its weight_map names no files")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = describe_placeholder(index) or f"not an index of shards ({summarize(error)}); download it again"
        raise UserError(f"{index}: {what}") from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{index.parent}: lacks {some(missing)}, {len(missing)} of the {len(names)} shards in {index.name}; "
            "download the whole repository"
        )
    return [index.parent / name for name in names]


def _read_one(path: Path) -> Any:
    what = describe_placeholder(path)
    if not path.stat().st_size:
        what = "an empty file, not readable; copy or download it again"
    if what:
        raise UserError(f"{path}: {'shard is ' if SHARD.fullmatch(path.name) else ''}{what}")
    with path.open("rb") as file:
        head = file.read(9)
    # a length, then JSON
    if path.suffix == ".safetensors" or (head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size):
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError("reading .safetensors needs the safetensors library: pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:  # the library has many exception types
        what = f"not readable ({type(error).__name__}); truncated? download it again"
        raise UserError(f"{path}: {_describe(path) or what}") from None


def _read_torch(path: Path) -> Any:
    _check_archive(path)
    # official files have torch's old format, which cannot be memory-mapped, and contain their training arguments
    for mapped in (True, False):
        try:
            with torch.serialization.safe_globals(PLAIN_OBJECTS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # torch raises many types for a broken file
            failure = error
    if what := _describe(path):
        raise UserError(f"{path}: {what}")
    if re.search("weights_only|Weights only", str(failure)) and "Unsupported operand" not in str(failure):
        found = re.search(r"GLOBAL ([\w.]+)", str(failure))
        raise UserError(
            f"{path}: contains Python objects besides tensors{f' ({found[1]})' if found else ''} and is not opened; "
            "save plain tensors with torch.save({'model': model.state_dict()}, path)"
        )
    raise UserError(
        f"{path}: not readable as a torch checkpoint ({type(failure).__name__}); truncated or another kind "
        "of file? download it again"
    )


def _check_archive(path: Path) -> None:
    """Raise UserError for a zip bomb: torch never compresses, so no valid file unpacks to more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # torch's old format, or damaged: torch.load decides
        return
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"{path}: a TorchScript archive; save its weights: torch.save(torch.jit.load(file).state_dict(), path)"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise UserError(
            f"{path}: a zip archive of {some(names)}, not of torch; unpack it and give the checkpoint in it"
        )
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path}: unpacks to {unpacked:,} bytes, more than the size of the file; torch does not write such files, "
            "download it again"
        )


def _describe(path: Path) -> str | None:
    """Return what a file that is no checkpoint is, if its first bytes show it."""
    with path.open("rb") as file:
        head = file.read(512)
    for pattern, what in FORMATS:
        if re.match(pattern, head, re.DOTALL):
            return what
    return describe_text(head, "not readable as a checkpoint")
