"""Fuzz target `manifest`: bundles with a damaged manifest, damaged graphs or a damaged folder."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import runtime
from helpers.damage import KINDS, damage_file
from helpers.null_backend import NullBackend
from helpers.toy_contents import bundles, manifest
from runtime.bundle.bundle import choose
from runtime.bundle.demo import Demo
from runtime.cli import summary
from runtime.engine import Engine

from .mutations import DELETE, damaged_bytes, damaged_json, replaced
from .targets import Target

WORDS = tuple(
    "networks samwise window stages bounds files default shape dtype inputs outputs tokenizer demo provenance memory "
    "slots resize rule mean std text x type vocab conditional_memory sam2 ../../x /etc/passwd a\0b \ud800".split(" ")
)


@dataclass(frozen=True, slots=True)
class BundleCase:
    """A toy bundle with another manifest (JSON value, or bytes), and `damage` as (number of a file, kind, number)."""

    base: str
    manifest: Any
    damage: tuple[tuple[int, str, int], ...] = ()
    ort: bool = False


def _prepare(case: BundleCase, inside: Path) -> Callable[[], None]:
    """Hashes of damaged files are made to fit."""
    folder = inside / "bundle"
    folder.mkdir()
    for name, content in bundles()[case.base].items():
        (folder / name).write_bytes(content)
    data, names = case.manifest, sorted(name for name in bundles()[case.base] if name != "manifest.json")
    for number, kind, amount in case.damage:
        path = damage_file(folder / names[number % len(names)], kind, amount)
        if path.is_file() and not path.is_symlink():
            data = replaced(data, ["files", path.name], hashlib.sha256(path.read_bytes()).hexdigest())
    data = data if isinstance(data, bytes) else json.dumps(data).encode("utf-8", "surrogatepass")
    (folder / "manifest.json").write_bytes(data)
    return functools.partial(_open, folder, case.ort)


def _open(folder: Path, ort: bool) -> None:
    """List, verify and load a bundle, and run a few frames, as the command does."""
    summary.describe_bundles(folder)
    bundle = choose(folder)
    bundle.verify()
    if bundle.manifest.demo is not None:
        Demo.load(bundle.folder / bundle.manifest.demo)
    if ort:
        engine = runtime.load(folder, backend="ort", threads=1, max_objects=2)
    else:
        engine = Engine(bundle, NullBackend(), max_objects=2)
    frames = np.zeros((5, 20, 30, 3), np.uint8)
    with engine:
        if runtime.Capability.TEXT_VIDEO in engine.capabilities:
            with engine.session([runtime.Text(tokens=[0, 5, 2])]) as session:
                list(session.stream(frames))
        if runtime.Capability.PROMPT_VIDEO in engine.capabilities:
            with engine.live() as session:
                prompts = {0: {1: runtime.Box([1, 2, 9, 9])}, 2: {2: runtime.Points([[3, 3]], [1])}}
                list(session.stream(frames, prompts))


def _examples() -> list[BundleCase]:
    edits: tuple[tuple[list[Any], Any], ...] = (
        (["networks", "samwise", "window"], 2),
        (["stages", "neck", "files", "default"], "../../x"),
        (["tokenizer"], "/etc/x"),
        (["bounds", "objects"], [0, 10**12]),
        (["networks"], DELETE),
        (["image_size"], 64),
        (["networks", "sam2"], {}),
        (["stages", "hiera_0", "inputs", 0, "shape"], ["frames", 3, 32, 10**9]),
        (["files", "a\nb"], "0"),
        (["provenance"], {}),
        (["variant"], "other"),
    )
    cases = [BundleCase(base, replaced(manifest(base), *edit)) for edit in edits for base in bundles()]
    cases += [
        BundleCase("toy_samwise", manifest("toy_samwise"), ((i, kind, 100),), kind in ("cut", "noise"))
        for i, kind in enumerate(KINDS)
    ]
    return cases + [BundleCase("toy_samwise", data) for data in (b"{", b"[]", b'{"format": 1}')]


def _cases(base: str) -> st.SearchStrategy[BundleCase]:
    texts = damaged_bytes(lambda: [bundles()[base]["manifest.json"]], tuple(w.encode(errors="replace") for w in WORDS))
    damage = st.tuples(st.integers(0, 15), st.sampled_from(KINDS), st.integers(0, 10**6))
    return st.builds(
        BundleCase,
        st.just(base),
        damaged_json(lambda: [manifest(base)], WORDS) | texts | st.builds(manifest, st.just(base)),
        st.lists(damage, max_size=2).map(tuple),
        st.sampled_from((False,) * 9 + (True,)),  # graphs are loaded in one case of ten
    )


TARGET = Target(_prepare, _examples, _cases("toy_samwise") | _cases("toy_sam2"))
