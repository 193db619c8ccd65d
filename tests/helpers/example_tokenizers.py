"""Small tokenizers of every kind that the runtime and the export read."""

from __future__ import annotations

import functools
import json
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

VOCABULARY = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "the": 4, "red": 5, "square": 6, "a": 7}


@functools.cache
def examples() -> list[Any]:
    """Content of tokenizer.json files as JSON; {"vocab":, "merges":} of RoBERTa; {"words":} of BERT."""
    found = []
    for model in (
        models.WordLevel(VOCABULARY, unk_token="<unk>"),
        models.BPE(VOCABULARY, [], unk_token="<unk>"),
        models.WordPiece(VOCABULARY, unk_token="<unk>"),
        models.Unigram([("<unk>", 0.0), ("a", -1.0), ("<s>", -2.0)]),
    ):
        library = Tokenizer(model)
        library.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
        library.pre_tokenizer = pre_tokenizers.Whitespace()
        library.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        found.append(json.loads(library.to_str()))
    library = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Split(pattern="a", behavior="isolated")
    library.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    library.add_special_tokens(["<s>", "</s>"])
    pieces = {c: i + 5 for i, c in enumerate("therdsqua\u0120")} | {"<s>": 0, "</s>": 2, "th": 30, "the": 31}
    return [
        *found,
        json.loads(library.to_str()),
        {"vocab": pieces, "merges": ["#version: 0.2", "t h", "th e"]},
        {"words": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "red"]},
    ]
