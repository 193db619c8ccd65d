"""Conversion of tokenizers to the `tokenizer.json` of a bundle.

Accepted: a local Hugging Face folder, a `tokenizer.json`, a folder (or either file) with `vocab.json` and `merges.txt`
(RoBERTa's byte-level BPE), or with `vocab.txt` (BERT's WordPiece). Nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from runtime.bundle.placeholder import describe_placeholder
from runtime.errors import UserError, summarize

FILE = "tokenizer.json"
PROBE = "a person riding a horse on the left"
SPECIAL_PAIRS = (("<s>", "</s>"), ("[CLS]", "[SEP]"), ("<|startoftext|>", "<|endoftext|>"))
"""Tokens before and after a sentence, for RoBERTa, BERT and CLIP."""


def load(source: str | Path, vocabulary: int | None = None) -> Tokenizer:
    """Load the tokenizer at `source` and check it on a sentence; `vocabulary` is the number of token embeddings.

    Raises UserError for a file that is missing, damaged, without tokens around a sentence, or beyond the vocabulary.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(
            f"{source}: no such tokenizer; give a Hugging Face folder, tokenizer.json, vocab.json "
            "beside merges.txt, or vocab.txt"
        )
    folder = source if source.is_dir() else source.parent
    if source.is_file() and source.name not in ("vocab.json", "merges.txt", "vocab.txt"):
        tokenizer, path = _from_file(source), source
    elif (folder / FILE).is_file() and source.is_dir():
        tokenizer, path = _from_file(folder / FILE), folder / FILE
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer, path = _roberta(folder / "vocab.json", folder / "merges.txt"), folder / "vocab.json"
    elif (folder / "vocab.txt").is_file():
        tokenizer, path = _bert(folder / "vocab.txt"), folder / "vocab.txt"
    else:
        raise UserError(
            f"{folder}: contains neither {FILE} nor vocab.json with merges.txt nor vocab.txt; give --tokenizer "
            "another folder"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _check(tokenizer, path, vocabulary)
    return tokenizer


def write(source: str | Path, folder: Path, vocabulary: int | None = None) -> str:
    """Load and check a tokenizer and write `folder/tokenizer.json`. Returns the name of the file."""
    load(source, vocabulary).save(str(folder / FILE))
    return FILE


def _check_downloaded(path: Path) -> None:
    if placeholder := describe_placeholder(path):
        raise UserError(f"{path}: {placeholder}")


def _from_file(path: Path) -> Tokenizer:
    _check_downloaded(path)
    try:
        return Tokenizer.from_file(str(path))
    except BaseException as error:
        raise _failed(path, error) from None


def _read_bpe(vocabulary: Path, merges: Path) -> tuple[dict[str, int], list[Any]]:
    """Read token ids and merges. Raises UserError."""
    _check_downloaded(vocabulary)
    _check_downloaded(merges)
    try:
        vocab = json.loads(vocabulary.read_text(encoding="utf-8"))
        if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
            raise ValueError("not an object of token -> number")
    except (OSError, ValueError) as error:
        raise UserError(f"{vocabulary}: not a vocabulary ({summarize(error, 200)}); copy it again") from None
    try:
        lines = merges.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{merges}: not a list of merges ({summarize(error, 200)}); copy it again") from None
    # the first line is a version comment; '#' may also begin a merge
    pairs = [tuple(line.split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    bad = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
    if bad is not None:
        raise UserError(f"{merges}: merge {bad + 1} is not two tokens; copy the file again")
    for token in ("<s>", "</s>"):
        if token not in vocab:
            raise UserError(f"{vocabulary}: has no {token!r}; give the vocabulary of roberta-base")
    return vocab, pairs


def _roberta(vocabulary: Path, merges: Path) -> Tokenizer:
    """Build byte-level BPE as in `roberta-base`: no leading blank, `<s>` sentence `</s>`, offsets without blanks."""
    vocab, pairs = _read_bpe(vocabulary, merges)
    try:
        tokenizer = Tokenizer(BPE(vocab=vocab, merges=pairs, unk_token="<unk>" if "<unk>" in vocab else None))
    except BaseException as error:
        _failed(merges, error)
        raise UserError(
            f"{merges}: does not fit {vocabulary.name} ({summarize(error, 200)}); give the two files of one model"
        ) from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    special = [
        AddedToken(t, special=True, normalized=False, lstrip=t == "<mask>")
        for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
        if t in vocab
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _bert(vocabulary: Path) -> Tokenizer:
    """Build WordPiece as in `bert-base-uncased`: lower case, without accents, `[CLS]` sentence `[SEP]`."""
    _check_downloaded(vocabulary)
    try:
        vocab = {token: i for i, token in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}
    except (OSError, ValueError) as error:
        raise UserError(f"{vocabulary}: not a vocabulary ({summarize(error, 200)}); copy it again") from None
    for token in ("[CLS]", "[SEP]", "[UNK]"):
        if token not in vocab:
            raise UserError(f"{vocabulary}: has no {token!r}; give the vocabulary of bert-base-uncased")
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocab["[SEP]"]), ("[CLS]", vocab["[CLS]"]))
    tokenizer.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocab])
    return tokenizer


def _check(tokenizer: Tokenizer, path: Path, vocabulary: int | None) -> None:
    """Raise UserError for a tokenizer without special tokens, with too many tokens, or that fails on a sentence."""
    if not any(all(tokenizer.token_to_id(t) is not None for t in pair) for pair in SPECIAL_PAIRS):
        pairs = ", ".join(f"{a} and {b}" for a, b in SPECIAL_PAIRS)
        raise UserError(f"{path}: has none of the pairs {pairs}; give the tokenizer of a text encoder")
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if vocabulary is not None and largest >= vocabulary:
        raise UserError(
            f"{path}: has token {largest}, the checkpoint only {vocabulary} tokens; give the tokenizer of the "
            "checkpoint's training"
        )
    try:
        ids = tokenizer.encode(PROBE).ids
    except BaseException as error:
        raise _failed(path, error) from None
    if not ids:
        raise UserError(f"{path}: returns no tokens for a sentence; give a trained tokenizer")


def _failed(path: Path, error: BaseException) -> UserError:
    """Return the error to raise; re-raise a request to stop. The library raises BaseException on a panic."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        raise error
    return UserError(f"{path}: not a working tokenizer file ({summarize(error, 200)}); give that of the network")
