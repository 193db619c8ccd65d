"""Fuzz targets: bundles (manifest, graphs, folder) and tokenizer files. An input is bytes; see `Target`."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import runtime
from runtime.bundle.bundle import choose
from runtime.bundle.demo import Demo
from runtime.cli import summary
from runtime.device.base import Cpu
from runtime.engine import Engine
from runtime.tokenizer import Tokenizer

from .inputs import Target, plain_json

DELETE = "\x00delete"
"""As the value of an edit: the field is taken away."""


class Numb:
    """A backend that loads nothing and answers zeros, so that everything around the graphs runs in microseconds."""

    name, forms = "numb", ("default",)

    def __init__(self) -> None:
        self.device = Cpu()

    def load(self, file: Path, spec: Any) -> Any:
        return NumbStage(spec)


class NumbStage:
    """One stage of it."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def run(self, **arrays: Any) -> None:
        for tensor in self.spec.outputs:
            arrays[tensor.name][...] = 0


@functools.cache
def bundles() -> dict[str, dict[str, bytes]]:
    """Name -> files of a small good bundle: those of the tests."""
    from helpers import toy_sam2
    from helpers import toy_samwise as toy

    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, module in (("toy", toy), ("toy_sam2", toy_sam2)):
            path = module.build(Path(folder, name))
            out[name] = {p.name: p.read_bytes() for p in sorted(path.iterdir())}
    return out


# ------------------------------------------------------------------------------------------------------------ bundles


def _bundle(data: bytes, inside: Path) -> Callable[[], Any]:
    """{"base": name, "edits": [[path, value]...], "files": [[name, what, number]...], "ort": bool}. Edits change the
    manifest, files the folder, and hashes are made to fit unless they are edited; other bytes are the manifest
    itself."""
    given = plain_json(data)
    known = isinstance(given, dict) and "edits" in given
    files = bundles().get(str(given.get("base")) if known else "toy", bundles()["toy"])
    folder = inside / "bundle"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest: Any = data
    if known:
        for edit in _lists(given.get("files")):
            _change(folder, edit)
        manifest = json.loads(files["manifest.json"])
        manifest["files"] |= {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.iterdir())
            if p.is_file() and not p.is_symlink() and p.name != "manifest.json"
        }
        for edit in _lists(given.get("edits")):
            if len(edit) == 2 and isinstance(edit[0], list):
                manifest = _edited(manifest, edit[0], edit[1])
        manifest = json.dumps(manifest).encode("utf-8", "surrogatepass")
    (folder / "manifest.json").write_bytes(manifest)
    return functools.partial(_open, folder, bool(known and given.get("ort")))


def _lists(value: Any) -> list[list[Any]]:
    return [v for v in value[:16] if isinstance(v, list) and v] if isinstance(value, list) else []


def _edited(data: Any, path: list[Any], value: Any) -> Any:
    """`data` with `value` at `path`; a path that leads nowhere changes nothing."""
    if not path:
        return data if value == DELETE else value
    key = path[0]
    if isinstance(data, dict) and isinstance(key, str):
        if len(path) == 1 and value == DELETE:
            data.pop(key, None)
        else:
            data[key] = _edited(data.get(key), path[1:], value)
    elif isinstance(data, list) and type(key) is int and 0 <= key < len(data):
        data[key] = _edited(data[key], path[1:], value)
    return data


def _change(folder: Path, edit: list[Any]) -> None:
    """One file: cut, noise, gone, a folder, a link to the outside or to no end, a pipe that nobody fills."""
    names = sorted(p.name for p in folder.iterdir() if p.name != "manifest.json")
    pick = edit[0] if type(edit[0]) is int else 0
    what = edit[1] if len(edit) > 1 else "cut"
    number = edit[2] if len(edit) > 2 and type(edit[2]) is int else 0
    if not names:
        return
    path = folder / names[pick % len(names)]
    if not path.is_file() or path.is_symlink():
        return
    content = path.read_bytes()
    path.unlink()
    if what == "cut":
        path.write_bytes(content[: number % (len(content) + 1)])
    elif what == "noise" and content:
        at = number % len(content)
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 + number % 255)]) + content[at + 1 :])
    elif what == "folder":
        path.mkdir()
    elif what in ("link", "loop"):
        path.symlink_to("/dev/zero" if what == "link" else path)
    elif what == "pipe":
        os.mkfifo(path)


def _open(folder: Path, ort: bool) -> None:
    """Everything that a run does with a bundle: list it, verify it, load it, a few frames."""
    summary.describe_bundles(folder)
    bundle = choose(folder)
    bundle.verify()
    if bundle.manifest.demo is not None:
        Demo.load(bundle.folder / bundle.manifest.demo)
    if ort:
        engine = runtime.load(folder, backend="ort", threads=1, max_objects=2)
    else:
        engine = Engine(bundle, Numb(), max_objects=2)
    frames = np.zeros((5, 20, 30, 3), np.uint8)
    with engine:
        for network in list(engine.networks.values()):
            if hasattr(network, "open"):
                with engine.session([runtime.Text(tokens=[0, 5, 2])]) as session:
                    list(session.stream(frames))
            if hasattr(network, "live"):
                with engine.session() as session:
                    prompts = {0: {1: runtime.Box([1, 2, 9, 9])}, 2: {2: runtime.Points([[3, 3]], [1])}}
                    list(session.stream(frames, prompts))


def _bundle_seeds() -> list[bytes]:
    edits: list[Any] = [
        [],
        [[["networks", "samwise", "window"], 2]],
        [[["stages", "neck", "files", "default"], "../../x"]],
        [[["tokenizer"], "/etc/x"]],
        [[["bounds", "objects"], [0, 10**12]]],
        [[["networks"], DELETE]],
        [[["image_size"], 64]],
        [[["networks", "sam2"], {}]],
        [[["stages", "hiera_0", "inputs", 0, "shape"], ["frames", 3, 32, 10**9]]],
        [[["files", "a\nb"], "0"]],
    ]
    seeds = [{"base": base, "edits": e, "files": [], "ort": False} for e in edits for base in ("toy", "toy_sam2")]
    seeds += [
        {"base": "toy", "edits": [], "files": [[i, what, 100]], "ort": what in ("cut", "noise")}
        for i, what in enumerate(("cut", "noise", "gone", "folder", "link", "loop", "pipe"))
    ]
    return [json.dumps(s).encode() for s in seeds] + [b"{", b"[]", b'{"format": 1}', bundles()["toy"]["manifest.json"]]


BUNDLE = Target(
    "manifest",
    _bundle,
    _bundle_seeds,
    structured=True,
    words=tuple(
        f'"{w}"'.encode()
        for w in (
            "networks",
            "samwise",
            "window",
            "stages",
            "bounds",
            "files",
            "default",
            "shape",
            "dtype",
            "inputs",
            "outputs",
            "tokenizer",
            "demo",
            "provenance",
            "memory",
            "slots",
            "resize",
            "rule",
            "mean",
            "std",
            "../../x",
            "/etc/passwd",
            "a\\u0000b",
            "\\ud800",
            "cut",
            "noise",
            "gone",
            "link",
            "pipe",
        )
    ),
)


# --------------------------------------------------------------------------------------------------------- tokenizers

WORDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "the": 4, "red": 5, "square": 6, "a": 7}
TEXTS = ("the red square", "a", "\u00e9\u4e2d \U0001f600 x", "a" * 3000, "\u0130\u00df " * 20)


def _tokenizer(data: bytes, inside: Path) -> Callable[[], Any]:
    """{"tokenizer": ...} is a tokenizer.json, {"vocab":, "merges":} RoBERTa's two files, {"words":} BERT's; else
    raw."""
    given = plain_json(data)
    path = inside / "tokenizer.json"
    if isinstance(given, dict) and "merges" in given:
        vocab, merges = given.get("vocab"), given.get("merges")
        _text(inside / "vocab.json", vocab if isinstance(vocab, str) else json.dumps(vocab))
        _text(inside / "merges.txt", merges)
        return functools.partial(_exported, inside)
    if isinstance(given, dict) and "words" in given:
        _text(inside / "vocab.txt", given["words"])
        return functools.partial(_exported, inside)
    wrapped = isinstance(given, dict) and "tokenizer" in given
    path.write_bytes(json.dumps(given["tokenizer"]).encode() if wrapped else data)
    return functools.partial(_spoken, path)


def _text(path: Path, lines: Any) -> None:
    text = "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _spoken(path: Path) -> None:
    """As the runtime and as the export read it."""
    refusal = None
    try:
        tokenizer = Tokenizer(path)
        for text in TEXTS:
            ids, spans = tokenizer(text)
            if len(ids) != len(spans):
                raise AssertionError("as many places as tokens")
    except runtime.UserError as error:
        refusal = error
    _exported(path)
    if refusal is not None:
        raise refusal


def _exported(path: Path) -> None:
    from export import tokenizer

    tokenizer.load(path, 50_000).encode(TEXTS[0])


@functools.cache
def _tokenizer_seeds() -> list[bytes]:
    from tokenizers import Tokenizer as Library
    from tokenizers import models, normalizers, pre_tokenizers, processors

    seeds = []
    for model in (
        models.WordLevel(WORDS, unk_token="<unk>"),
        models.BPE(WORDS, [], unk_token="<unk>"),
        models.WordPiece(WORDS, unk_token="<unk>"),
        models.Unigram([("<unk>", 0.0), ("a", -1.0), ("<s>", -2.0)]),
    ):
        library = Library(model)
        library.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
        library.pre_tokenizer = pre_tokenizers.Whitespace()
        library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        seeds.append(json.dumps({"tokenizer": json.loads(library.to_str())}).encode())
    library = Library(models.WordLevel(WORDS, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Split(pattern="a", behavior="isolated")
    library.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    library.add_special_tokens(["<s>", "</s>"])
    seeds.append(json.dumps({"tokenizer": json.loads(library.to_str())}).encode())
    pieces = {c: i + 5 for i, c in enumerate("therdsqua\u0120")} | {"<s>": 0, "</s>": 2, "th": 30, "the": 31}
    seeds.append(json.dumps({"vocab": pieces, "merges": ["#version: 0.2", "t h", "th e"]}).encode())
    seeds.append(json.dumps({"words": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "red"]}).encode())
    return seeds


TOKENIZER = Target(
    "tokenizer",
    _tokenizer,
    _tokenizer_seeds,
    structured=True,
    words=tuple(
        f'"{w}"'.encode()
        for w in (
            "type",
            "vocab",
            "merges",
            "unk_token",
            "Regex",
            "(a+)+$",
            "Sequence",
            "BPE",
            "Unigram",
            "<s>",
            "ByteLevel",
            "Precompiled",
            "TemplateProcessing",
            "special_tokens",
            "added_tokens",
            "truncation",
        )
    ),
)
