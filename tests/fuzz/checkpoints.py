"""Fuzz target `checkpoint`: checkpoints in every format that the export reads."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from export.checkpoints import refersam as refersam_checkpoints
from export.checkpoints import sam2 as sam2_checkpoints
from export.checkpoints import samwise as samwise_checkpoints
from export.models import refersam, sam2, samwise
from helpers import hugging_face

from .invariants import tripwire
from .mutations import ANYTHING, damaged_bytes, damaged_json, replaced
from .targets import Target

LOADERS: dict[str, Callable[[Path], Any]] = {
    "samwise": samwise_checkpoints.load_samwise,
    "sam2": sam2_checkpoints.load_sam2,
    "refersam": lambda path: refersam_checkpoints.load_refersam(path, 64),
}
DTYPES = "float32 float16 bfloat16 float64 int64 int8 uint8 bool complex64 float8_e4m3fn uint16".split()
CONFIG = json.dumps(hugging_face.config()).encode()
WORDS = (
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", f"c{tripwire.__module__}\ntripwire\n".encode()),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n"),
    *(b"PK\x01\x02", b"PK\x05\x06", b"data.pkl", b"\x80\x02", b"R."),
)


class Trap:
    """Pickles as a call of `tripwire`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return tripwire, ("x",)


CHANGES: dict[str, Callable[[torch.Tensor, Any], Any]] = {
    "type": lambda tensor, number: tensor.to(getattr(torch, DTYPES[number % len(DTYPES)])),
    "shape": lambda _, sizes: torch.zeros(_limited(sizes, 64)),
    "huge": lambda _, sizes: torch.zeros(()).expand(_limited(sizes, 1 << 40)),
    "sparse": lambda tensor, _: tensor.to_sparse(),
    "meta": lambda tensor, _: tensor.to("meta"),
    "nan": lambda tensor, _: torch.full_like(tensor.float(), float("nan")),
    "code": lambda *_: Trap(),
    "value": lambda _, value: value,
}
"""Change of a tensor -> its new value; "gone" and "name" remove and rename it."""


@dataclasses.dataclass(frozen=True, slots=True)
class CheckpointCase:
    """A toy checkpoint with changed tensors (number or name, change, operand) and config."""

    network: str
    tensors: tuple[tuple[int | str, str, Any], ...] = ()
    config: Any = None
    legacy: bool = False
    """Saved in torch's format before 1.6."""


@functools.cache
def networks() -> dict[str, tuple[dict[str, torch.Tensor], Any]]:
    """Tensors and config of a toy network of each kind."""
    torch.manual_seed(0)
    one = samwise.Samwise(samwise.tiny_test_config())
    two = sam2.Sam2(sam2.tiny_test_config())
    three = refersam.ReferSam(refersam.tiny_test_config())
    configs = [json.loads(json.dumps(dataclasses.asdict(model.config))) for model in (one, two)]
    return {
        "samwise": (one.state_dict(), configs[0]),
        "sam2": (two.sam.state_dict(), configs[1]),
        "refersam": (three.state_dict(), None),
    }


def _prepare(case: CheckpointCase | bytes, inside: Path) -> Callable[[], Any]:
    """First byte of bytes: Z a file, P the pickle inside a valid file, S a safetensors file, H a config.json."""
    path = inside / "x.pth"
    if isinstance(case, CheckpointCase):
        _save(case, path)
        return functools.partial(LOADERS[case.network], path)
    kind, content = chr(case[0]) if case else "Z", case[1:]
    if kind in "SH":
        (inside / "config.json").write_bytes(content if kind == "H" else CONFIG)
        (inside / "model.safetensors").write_bytes(content if kind == "S" else _safetensors())
        return functools.partial(sam2_checkpoints.load_sam2, inside)
    path.write_bytes(_archive(content) if kind == "P" else content)
    return functools.partial(list(LOADERS.values())[len(content) % len(LOADERS)], path)


@functools.cache
def _safetensors() -> bytes:
    """The toy SAM 2's tensors, under names that are not Hugging Face's."""
    return hugging_face.safetensors(networks()["sam2"][0])


def _archive(pickled: bytes) -> bytes:
    """A file of torch's format with this pickle and four storages of 64 bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", pickled), ("byteorder", "little"), ("version", "3\n")):
            archive.writestr(f"x/{name}", data)
        for i in range(4):
            archive.writestr(f"x/data/{i}", bytes(64))
    return out.getvalue()


def _save(case: CheckpointCase, path: Path) -> None:
    tensors: dict[str, Any] = dict(networks()[case.network][0])
    names = sorted(tensors)
    for pick, change, operand in case.tensors:
        name = names[pick % len(names)] if isinstance(pick, int) else pick
        old = tensors.pop(name, None)
        old = old if isinstance(old, torch.Tensor) else torch.zeros(1)
        if change == "name":
            tensors[str(operand)] = old
        elif change != "gone":
            tensors[name] = CHANGES[change](old, operand)
    data = {"model": tensors} | ({} if case.config is None else {"config": case.config})
    torch.save(data, path, _use_new_zipfile_serialization=not case.legacy)


def _limited(sizes: list[int], limit: int) -> list[int]:
    """The first sizes whose product is within the limit."""
    out: list[int] = []
    total = 1
    for size in sizes:
        total *= max(size, 1)
        if total > limit:
            break
        out.append(size)
    return out


def _saved(data: Any, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(data, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


@functools.cache
def _files() -> list[bytes]:
    small = {"model": {"a": torch.zeros(2, 3), "b": torch.ones(4).half()}, "config": {"sam": {}}}
    trap = {"model": {"a": Trap()}}
    with zipfile.ZipFile(io.BytesIO(_saved(small))) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    return [
        *(b"Z" + _saved(data, legacy) for data in (small, trap) for legacy in (False, True)),
        b"Z" + pickle.dumps(small["config"]),
        b"P" + pickle.dumps(trap, 2),
        b"P" + pickled,
        b"S" + hugging_face.safetensors({"a": torch.zeros(2)}),
        b"H" + CONFIG,
    ]


def _examples() -> list[CheckpointCase | bytes]:
    changes = (
        *((3, "gone", None), ("new\nline", "shape", [2]), (5, "type", 4), (7, "huge", [1 << 30])),
        *((9, "sparse", None), (9, "code", None), (9, "meta", None)),
    )
    cases = []
    for name, (_, config) in networks().items():
        cases += [CheckpointCase(name, (), config), CheckpointCase(name, (), config, legacy=True)]
        cases += [CheckpointCase(name, (change,), config) for change in changes]
        for path, value in ((["image_size"], 128), (["sam", "memory_layers"], 10**9)):
            cases.append(CheckpointCase(name, (), config and replaced(config, path, value)))
    return [*_files(), *cases]


def _operand(change: str) -> st.SearchStrategy[Any]:
    sizes = st.lists(st.integers(0, 64) | st.sampled_from([1 << 20, 1 << 30, 1 << 40]), max_size=5)
    return {"type": st.integers(0, 99), "shape": sizes, "huge": sizes, "name": st.text(max_size=20)}.get(
        change, ANYTHING
    )


def _cases(network: str) -> st.SearchStrategy[CheckpointCase]:
    pick = st.integers(0, 400) | st.text(max_size=20)
    change = st.sampled_from([*CHANGES, "gone", "name"]).flatmap(lambda c: st.tuples(pick, st.just(c), _operand(c)))
    config = st.deferred(lambda: st.just(networks()[network][1]))
    damaged = config if network == "refersam" else damaged_json(lambda: [networks()[network][1]], ["image_size", "sam"])
    return st.builds(
        CheckpointCase, st.just(network), st.lists(change, max_size=3).map(tuple), config | damaged, st.booleans()
    )


TARGET = Target(_prepare, _examples, damaged_bytes(_files, WORDS) | st.one_of(*map(_cases, LOADERS)))
