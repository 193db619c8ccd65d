"""Fuzz target: checkpoints in every form that the export reads. An input is bytes; see `Target`."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from export.checkpoints import refersam as refersam_checkpoints
from export.checkpoints import sam2 as sam2_checkpoints
from export.checkpoints import samwise as samwise_checkpoints
from export.models import refersam, sam2, samwise

from .inputs import Target, plain_json
from .invariants import tripwire

LOADERS: dict[str, Callable[[Path], Any]] = {
    "samwise": samwise_checkpoints.load_samwise,
    "sam2": sam2_checkpoints.load_sam2,
    "refersam": lambda path: refersam_checkpoints.load_refersam(path, 64),
}
DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int64",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "float8_e4m3fn",
    "uint16",
)
DELETE = "\x00delete"


class Trap:
    """Pickles as a call of `tripwire`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return tripwire, ("x",)


@functools.cache
def networks() -> dict[str, tuple[dict[str, torch.Tensor], Any]]:
    """Tensors and config of a toy network of each kind."""
    torch.manual_seed(0)
    one = samwise.Samwise(samwise.tiny_test_config())
    two = sam2.Sam2(sam2.tiny_test_config())
    three = refersam.ReferSam(refersam.tiny_test_config())
    return {
        "samwise": (one.state_dict(), dataclasses.asdict(one.config)),
        "sam2": (two.sam.state_dict(), dataclasses.asdict(two.config)),
        "refersam": (three.state_dict(), None),
    }


def _checkpoint(data: bytes, inside: Path) -> Callable[[], Any]:
    """JSON {"network":, "tensors": [[pick, what, value]...], "config": [[path, value]...], "old": bool} changes a good
    checkpoint. Else the first byte: Z a file as it is, P the pickle inside a good file, S safetensors, H a
    config.json."""
    given = plain_json(data)
    path = inside / "x.pth"
    if isinstance(given, dict):
        return _changed(given, path)
    kind, content = chr(data[0]) if data else "Z", data[1:]
    if kind in "SH":
        (inside / "config.json").write_bytes(content if kind == "H" else json.dumps(hugging_face()).encode())
        (inside / "model.safetensors").write_bytes(content if kind == "S" else safetensors())
        return functools.partial(sam2_checkpoints.load_sam2, inside)
    path.write_bytes(packed(content) if kind == "P" else content)
    loader = list(LOADERS)[len(content) % len(LOADERS)]
    return functools.partial(LOADERS[loader], path)


def packed(pickled: bytes) -> bytes:
    """A file of torch's format with this pickle, and four storages of 64 bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", "little")
        for i in range(4):
            archive.writestr(f"x/data/{i}", bytes(64))
        archive.writestr("x/version", "3\n")
    return out.getvalue()


def _changed(given: dict[str, Any], path: Path) -> Callable[[], Any]:
    name = given.get("network")
    name = name if isinstance(name, str) and name in LOADERS else "samwise"
    tensors, config = networks()[name]
    tensors, config = dict(tensors), json.loads(json.dumps(config))
    for edit in _lists(given.get("tensors")):
        _change(tensors, edit)
    for edit in _lists(given.get("config")):
        if len(edit) == 2 and isinstance(edit[0], list):
            config = _edited(config, edit[0], edit[1])
    saved: dict[str, Any] = {"model": tensors}
    if config is not None:
        saved["config"] = config
    torch.save(saved, path, _use_new_zipfile_serialization=not given.get("old"))
    return functools.partial(LOADERS[name], path)


def _lists(value: Any) -> list[list[Any]]:
    return [v for v in value[:8] if isinstance(v, list) and v] if isinstance(value, list) else []


def _edited(data: Any, path: list[Any], value: Any) -> Any:
    """`data` with `value` at `path`; a path that leads nowhere changes nothing."""
    if not path:
        return value
    if isinstance(data, dict) and isinstance(path[0], str):
        if value == DELETE and len(path) == 1:
            data.pop(path[0], None)
        else:
            data[path[0]] = _edited(data.get(path[0]), path[1:], value)
    elif isinstance(data, list) and type(path[0]) is int and 0 <= path[0] < len(data):
        data[path[0]] = _edited(data[path[0]], path[1:], value)
    return data


def _change(tensors: dict[str, Any], edit: list[Any]) -> None:
    """One tensor, by number or name: gone, another name, shape or type, huge without numbers, sparse, nothing, code."""
    pick, what, value = (*edit, None, None)[:3]
    names = sorted(tensors)
    name = pick if isinstance(pick, str) else names[pick % len(names)] if type(pick) is int and names else "x"
    old = tensors.get(name, torch.zeros(1))
    old = old if isinstance(old, torch.Tensor) else torch.zeros(1)
    if what == "gone":
        tensors.pop(name, None)
    elif what == "name":
        tensors.pop(name, None)
        tensors[str(value)] = old
    elif what == "shape":
        tensors[name] = torch.zeros(_sizes(value, 64))
    elif what == "huge":
        tensors[name] = torch.zeros(()).expand(_sizes(value, 1 << 40))
    elif what == "type":
        tensors[name] = old.to(getattr(torch, DTYPES[value % len(DTYPES) if type(value) is int else 0]))
    elif what == "sparse":
        tensors[name] = old.to_sparse()
    elif what == "meta":
        tensors[name] = old.to("meta")
    elif what == "nan":
        tensors[name] = torch.full_like(old.float(), float("nan"))
    elif what == "code":
        tensors[name] = Trap()
    else:
        tensors[name] = value


def _sizes(value: Any, largest: int) -> list[int]:
    sizes = value if isinstance(value, list) else [value]
    out, total = [], 1
    for size in sizes[:6]:
        size = min(abs(size), largest) if type(size) is int else 1
        if total * max(size, 1) > largest:
            break
        out, total = [*out, size], total * max(size, 1)
    return out


# -------------------------------------------------------------------------------------------------------------- seeds


def hugging_face() -> dict[str, Any]:
    """A config of Hugging Face's layout."""
    trunk = {
        "hidden_size": 16,
        "blocks_per_stage": [1, 2, 2, 1],
        "num_attention_heads": 1,
        "global_attention_blocks": [4],
        "window_size_per_stage": [8, 4, 6, 4],
        "window_positional_embedding_background_size": [7, 7],
    }
    return {
        "vision_config": {"backbone_config": trunk},
        "image_size": 128,
        "memory_attention_num_layers": 2,
        "mask_decoder_config": {"num_hidden_layers": 2, "num_attention_heads": 4},
        "memory_fuser_num_layers": 2,
    }


@functools.cache
def safetensors() -> bytes:
    """The toy SAM 2's tensors under names that the config cannot fill."""
    header, body = {}, b""
    for name, value in list(networks()["sam2"][0].items()):
        raw = value.float().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def saved(data: Any, **options: Any) -> bytes:
    """What `torch.save` writes."""
    out = io.BytesIO()
    torch.save(data, out, **options)
    return out.getvalue()


def _seeds() -> list[bytes]:
    small = {"model": {"a": torch.zeros(2, 3), "b": torch.ones(4).half()}, "config": {"sam": {}}}
    seeds = [
        b"Z" + saved(small),
        b"Z" + saved(small, _use_new_zipfile_serialization=False),
        b"Z" + pickle.dumps(small["config"]),
    ]
    trap = {"model": {"a": Trap()}}
    seeds += [
        b"Z" + saved(trap),
        b"Z" + saved(trap, _use_new_zipfile_serialization=False),
        b"P" + pickle.dumps(trap, 2),
    ]
    with zipfile.ZipFile(io.BytesIO(saved(small))) as archive:
        seeds.append(b"P" + archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl"))))
    tiny = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    seeds += [b"S" + struct.pack("<Q", len(tiny)) + tiny + bytes(8), b"H" + json.dumps(hugging_face()).encode()]
    changes: list[dict[str, Any]] = [
        {},
        {"old": True},
        {"tensors": [[3, "gone"]]},
        {"tensors": [["new\nline", "shape", [2]]]},
        {"tensors": [[5, "type", 4]]},
        {"tensors": [[7, "huge", [1 << 30]]]},
        {"tensors": [[9, "sparse"]]},
        {"tensors": [[9, "code"]]},
        {"tensors": [[9, "meta"]]},
        {"config": [[["image_size"], 128]]},
        {"config": [[["sam", "memory_layers"], 10**9]]},
    ]
    seeds += [json.dumps({"network": n, "tensors": [], "config": [], **c}).encode() for c in changes for n in LOADERS]
    return seeds


CHECKPOINT = Target(
    "checkpoint",
    _checkpoint,
    _seeds,
    structured=True,
    words=(
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"cfuzz.invariants\ntripwire\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"data.pkl",
        b"\x80\x02",
        b"R.",
        b'"gone"',
        b'"shape"',
        b'"huge"',
        b'"type"',
        b'"sparse"',
        b'"meta"',
        b'"code"',
        b'"nan"',
        b'"name"',
        b'"config"',
        b'"sam"',
        b'"network"',
        b'"refersam"',
    ),
)
