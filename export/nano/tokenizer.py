"""Byte-level BPE tokenizer of the dataset's sentences, with the special tokens of RoBERTa.

python -m export.nano.tokenizer          # writes build/nano/tokenizer.json; deterministic
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from .grammar import COLOURS, KINDS, NOUNS, absent_sentence, phrase, pick

FILE = Path(__file__).resolve().parents[2] / "build" / "nano" / "tokenizer.json"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
PAD = 1
VOCABULARY = 1024
MAX_TOKENS = 32


def sentences(count: int = 12000) -> list[str]:
    """Draw sentences of every kind about every noun, without drawing a clip."""
    rng, kinds, out = np.random.default_rng(0), list(KINDS), []
    for i in range(count):
        kind, noun, colour = kinds[i % len(kinds)], pick(rng, NOUNS), pick(rng, tuple(COLOURS))
        attribute, anchor = pick(rng, KINDS[kind]), pick(rng, NOUNS)
        out.append(phrase(rng, kind, noun, attribute, colour, anchor))
    return out + [absent_sentence(rng, set()) for _ in range(count // 20)]


def train(texts: list[str]) -> Tokenizer:
    """Train a tokenizer on the sentences; deterministic."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = sorted(pre_tokenizers.ByteLevel.alphabet()), list(SPECIAL)
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(sorted(texts), trainer)
    ends = ("</s>", 2), ("<s>", 0)
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=True)
    return tokenizer


def write() -> None:
    """Train the tokenizer and save it as `FILE`."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    train(sentences()).save(str(FILE))


def load() -> Tokenizer:
    """Read the tokenizer; train and save it first if the file is missing."""
    if not FILE.is_file():
        write()
    return Tokenizer.from_file(str(FILE))


def encode(tokenizer: Tokenizer, texts: list[str], length: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return padded token ids int64 (B,L), and bool (B,L), true for real tokens. `length`: least L."""
    ids = [tokenizer.encode(text).ids[:MAX_TOKENS] for text in texts]
    tokens = np.full((len(ids), max([length, *map(len, ids)])), PAD, np.int64)
    for row, sentence in zip(tokens, ids, strict=True):
        row[: len(sentence)] = sentence
    return tokens, tokens != PAD


if __name__ == "__main__":
    description = f"train the tokenizer of the dataset and write {FILE}"
    argparse.ArgumentParser(prog="python -m export.nano.tokenizer", description=description).parse_args()
    write()
    print(f"{FILE}: {load().get_vocab_size()} tokens")
