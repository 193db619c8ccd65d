"""Toy checkpoints of the three networks, and small files in every format of a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
import operator
import pickle
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from export.models import refersam, sam2, samwise
from helpers import hugging_face, toy_networks

DTYPES = "float32 float16 bfloat16 float64 int64 int8 uint8 bool complex64 float8_e4m3fn uint16".split()
CHANGES: dict[str, Callable[[torch.Tensor, Any], Any]] = {
    "type": lambda tensor, number: tensor.to(getattr(torch, DTYPES[number % len(DTYPES)])),
    "shape": lambda _, sizes: torch.zeros(_limited(sizes, 64)),
    "huge": lambda _, sizes: torch.zeros(()).expand(_limited(sizes, 1 << 40)),
    "sparse": lambda tensor, _: tensor.to_sparse(),
    "meta": lambda tensor, _: tensor.to("meta"),
    "nan": lambda tensor, _: torch.full_like(tensor.float(), float("nan")),
    "value": lambda _, value: value,
}
"""Changes of a tensor for `save`."""


def _limited(sizes: Sequence[int], limit: int) -> list[int]:
    """The first sizes whose product is within the limit."""
    products = itertools.accumulate((max(size, 1) for size in sizes), operator.mul)
    return [size for size, product in zip(sizes, products, strict=True) if product <= limit]


@functools.cache
def networks() -> dict[str, tuple[dict[str, torch.Tensor], Any]]:
    """Tensors and config of a toy network of each kind."""
    torch.manual_seed(0)
    one = samwise.Samwise(toy_networks.toy_samwise_config())
    two = sam2.Sam2(toy_networks.toy_sam2_config())
    three = refersam.ReferSam(toy_networks.toy_refersam_config())
    configs = [json.loads(json.dumps(dataclasses.asdict(model.config))) for model in (one, two)]
    return {
        "samwise": (one.state_dict(), configs[0]),
        "sam2": (two.sam.state_dict(), configs[1]),
        "refersam": (three.state_dict(), None),
    }


def save(
    path: Path, network: str, edits: Iterable[tuple[int | str, Any, Any]] = (), config: Any = None, legacy: bool = False
) -> None:
    """Save a toy network's checkpoint.

    edits   (number or name of a tensor, one of `CHANGES` or "gone" or "name", operand)
    legacy  in torch's format before 1.6
    """
    tensors: dict[str, Any] = dict(networks()[network][0])
    names = sorted(tensors)
    for pick, change, operand in edits:
        name = names[pick % len(names)] if isinstance(pick, int) else pick
        old = tensors.pop(name, None)
        old = old if isinstance(old, torch.Tensor) else torch.zeros(1)
        if change == "name":
            tensors[str(operand)] = old
        elif change != "gone":
            tensors[name] = change(old, operand)
    data = {"model": tensors} | ({} if config is None else {"config": config})
    torch.save(data, path, _use_new_zipfile_serialization=not legacy)


def archive(pickled: bytes) -> bytes:
    """A file of torch's format with this pickle and four storages of 64 bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", pickled), ("byteorder", "little"), ("version", "3\n")):
            archive.writestr(f"x/{name}", data)
        for i in range(4):
            archive.writestr(f"x/data/{i}", bytes(64))
    return out.getvalue()


def _saved(data: Any, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(data, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


@functools.cache
def files(code: Any) -> list[bytes]:
    """Small files of every format; some hold `code`, an object whose pickle is a call.

    First byte: Z a file of torch or pickle, P the pickle inside one, S a safetensors file, H a config.json.
    """
    small = {"model": {"a": torch.zeros(2, 3), "b": torch.ones(4).half()}, "config": {"sam": {}}}
    trap = {"model": {"a": code}}
    with zipfile.ZipFile(io.BytesIO(_saved(small))) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    return [
        *(b"Z" + _saved(data, legacy) for data in (small, trap) for legacy in (False, True)),
        b"Z" + pickle.dumps(small["config"]),
        b"P" + pickle.dumps(trap, 2),
        b"P" + pickled,
        b"S" + hugging_face.safetensors({"a": torch.zeros(2)}),
        b"H" + json.dumps(hugging_face.config()).encode(),
    ]
