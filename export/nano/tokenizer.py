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

from .grammar import BORDER, COLOURS, KINDS, MOTIONS, NOUNS, POSITION, RELATION, SIZE, absent_sentence, phrase, pick

FILE = Path(__file__).resolve().parents[2] / "build" / "nano" / "tokenizer.json"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
PAD = 1
VOCABULARY = 1024
MAX_TOKENS = 32

_ATTRIBUTES = {
    "noun": (None,),
    "colour": tuple(COLOURS),
    "size": tuple(SIZE),
    "position": tuple(POSITION),
    "relation": tuple(RELATION),
    "motion": (*MOTIONS, "still"),
    "earlier": tuple(MOTIONS),
    "later": (*MOTIONS, "stop"),
    "border": tuple(BORDER),
}


def sentences(count: int = 12000, seed: int = 0) -> list[str]:
    """Draw sentences of every kind about every noun, without drawing a clip."""
    rng, out = np.random.default_rng(seed), []
    for i in range(count):
        kind, noun = KINDS[i % len(KINDS)], pick(rng, NOUNS)
        colour = pick(rng, tuple(COLOURS))
        attribute, anchor = pick(rng, _ATTRIBUTES[kind]), pick(rng, NOUNS)
        out.append(phrase(rng, kind, noun, attribute, colour, anchor))
    return out + [absent_sentence(rng, set()) for _ in range(count // 20)]


def train(texts: list[str] | None = None) -> Tokenizer:
    """Train a tokenizer on the sentences; deterministic."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(sorted(texts or sentences()), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True
    )
    return tokenizer


def load(path: Path = FILE) -> Tokenizer:
    """Read the tokenizer at `path`; train and save it first if the file is missing."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        train().save(str(path))
    return Tokenizer.from_file(str(path))


def encode(tokenizer: Tokenizer, texts: list[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return padded token ids int64 (B,L), and bool (B,L), true for real tokens. `length`: least L."""
    ids = [tokenizer.encode(text).ids[:MAX_TOKENS] for text in texts]
    width = max([length or 0, *map(len, ids)])
    tokens = np.full((len(ids), width), PAD, np.int64)
    for row, sentence in zip(tokens, ids, strict=True):
        row[: len(sentence)] = sentence
    return tokens, tokens != PAD


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m export.nano.tokenizer", description="train the tokenizer of the dataset"
    )
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = train()
    tokenizer.save(str(args.out))
    longest = max(len(tokenizer.encode(s).ids) for s in sentences())
    print(f"{args.out}: {tokenizer.get_vocab_size()} tokens, longest sentence {longest}")


if __name__ == "__main__":
    main()
