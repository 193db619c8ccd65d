"""Fuzz target `checkpoint`: checkpoints in every format that the export reads."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from export.checkpoints import refersam as refersam_checkpoints
from export.checkpoints import sam2 as sam2_checkpoints
from export.checkpoints import samwise as samwise_checkpoints
from helpers import hugging_face, toy_checkpoints
from helpers.audit import tripwire

from .mutations import ANYTHING, damaged_bytes, damaged_json, replaced
from .targets import Target

LOADERS: dict[str, Callable[[Path], Any]] = {
    "samwise": samwise_checkpoints.load_samwise,
    "sam2": sam2_checkpoints.load_sam2,
    "refersam": lambda path: refersam_checkpoints.load_refersam(path, 64),
}
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


FILES = functools.partial(toy_checkpoints.files, Trap())
"""Examples as bytes; see `_prepare`."""
CHANGES = toy_checkpoints.CHANGES | {"code": lambda *_: Trap()}
"""Change of a tensor -> function of tensor and operand; "gone" and "name" remove and rename it."""


@dataclasses.dataclass(frozen=True, slots=True)
class CheckpointCase:
    """A toy checkpoint with changed tensors (number or name, change, operand) and config."""

    network: str
    tensors: tuple[tuple[int | str, str, Any], ...] = ()
    config: Any = None
    legacy: bool = False
    """Saved in torch's format before 1.6."""


def _prepare(case: CheckpointCase | bytes, inside: Path) -> Callable[[], Any]:
    """First byte of bytes: Z a file, P the pickle inside a valid file, S a safetensors file, H a config.json."""
    path = inside / "x.pth"
    if isinstance(case, CheckpointCase):
        edits = [(pick, CHANGES.get(change, change), operand) for pick, change, operand in case.tensors]
        toy_checkpoints.save(path, case.network, edits, case.config, case.legacy)
        return functools.partial(LOADERS[case.network], path)
    kind, content = chr(case[0]) if case else "Z", case[1:]
    if kind in "SH":
        (inside / "config.json").write_bytes(content if kind == "H" else CONFIG)
        tensors = content if kind == "S" else hugging_face.safetensors(toy_checkpoints.networks()["sam2"][0])
        (inside / "model.safetensors").write_bytes(tensors)
        return functools.partial(sam2_checkpoints.load_sam2, inside)
    path.write_bytes(toy_checkpoints.archive(content) if kind == "P" else content)
    return functools.partial(list(LOADERS.values())[len(content) % len(LOADERS)], path)


def _examples() -> list[CheckpointCase | bytes]:
    changes = (
        *((3, "gone", None), ("new\nline", "shape", [2]), (5, "type", 4), (7, "huge", [1 << 30])),
        *((9, "sparse", None), (9, "code", None), (9, "meta", None)),
    )
    cases = []
    for name, (_, config) in toy_checkpoints.networks().items():
        cases += [CheckpointCase(name, (), config), CheckpointCase(name, (), config, legacy=True)]
        cases += [CheckpointCase(name, (change,), config) for change in changes]
        for path, value in ((["image_size"], 128), (["sam", "memory_layers"], 10**9)):
            cases.append(CheckpointCase(name, (), config and replaced(config, path, value)))
    return [*FILES(), *cases]


def _operand(change: str) -> st.SearchStrategy[Any]:
    sizes = st.lists(st.integers(0, 64) | st.sampled_from([1 << 20, 1 << 30, 1 << 40]), max_size=5)
    known = {"type": st.integers(0, 99), "shape": sizes, "huge": sizes, "name": st.text(max_size=20)}
    return known.get(change, ANYTHING)


def _cases(network: str) -> st.SearchStrategy[CheckpointCase]:
    pick = st.integers(0, 400) | st.text(max_size=20)
    change = st.sampled_from([*CHANGES, "gone", "name"]).flatmap(lambda c: st.tuples(pick, st.just(c), _operand(c)))
    changes = st.lists(change, max_size=3).map(tuple)
    config = st.deferred(lambda: st.just(toy_checkpoints.networks()[network][1]))
    if network != "refersam":  # its checkpoints have no config
        config |= damaged_json(lambda: [toy_checkpoints.networks()[network][1]], ["image_size", "sam"])
    return st.builds(CheckpointCase, st.just(network), changes, config, st.booleans())


TARGET = Target(_prepare, _examples, damaged_bytes(FILES, WORDS) | st.one_of(*map(_cases, LOADERS)))
