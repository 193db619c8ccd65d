"""Fuzz target `tokenizer`: tokenizer.json, RoBERTa's vocab.json with merges.txt, and BERT's vocab.txt."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runtime
from export import tokenizer as export_tokenizer
from helpers import example_tokenizers
from runtime.tokenizer import Tokenizer

from .mutations import damaged_bytes, damaged_json
from .targets import Target

TEXTS = ("the red square", "a", "\u00e9\u4e2d \U0001f600 x", "a" * 3000, "\u0130\u00df " * 20)
WORDS = tuple(
    "type vocab merges unk_token Regex (a+)+$ Sequence BPE Unigram <s> ByteLevel Precompiled TemplateProcessing "
    "special_tokens added_tokens truncation".split()
)


def _prepare(data: Any, inside: Path) -> Callable[[], None]:
    """Bytes and other JSON are a tokenizer.json, {"vocab":, "merges":} RoBERTa's two files, {"words":} BERT's."""
    files = {"vocab": "vocab.json", "merges": "merges.txt", "words": "vocab.txt"}
    if isinstance(data, dict) and ("merges" in data or "words" in data):
        for key in data.keys() & files.keys():
            lines = data[key]
            text = "\n".join(map(str, lines)) if isinstance(lines, list) else json.dumps(lines)
            (inside / files[key]).write_bytes(text.encode("utf-8", "surrogatepass"))
        return functools.partial(_export, inside)
    path = inside / "tokenizer.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return functools.partial(_tokenize, path)


def _tokenize(path: Path) -> None:
    """Read the file as the runtime and as the export do."""
    refusal = None
    try:
        tokenizer = Tokenizer(path)
        for text in TEXTS:
            ids, spans = tokenizer(text)
            if len(ids) != len(spans):
                raise AssertionError(f"{len(ids)} tokens, {len(spans)} spans")
    except runtime.UserError as error:
        refusal = error
    _export(path)
    if refusal is not None:
        raise refusal


def _export(path: Path) -> None:
    export_tokenizer.load(path, 50_000).encode(TEXTS[0])


EXAMPLES = example_tokenizers.examples
TARGET = Target(
    _prepare,
    EXAMPLES,
    damaged_json(EXAMPLES, WORDS)
    | damaged_bytes(lambda: [json.dumps(e).encode() for e in EXAMPLES()], [f'"{w}"'.encode() for w in WORDS]),
)
