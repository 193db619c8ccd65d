"""Conversion of tokenizers to the `tokenizer.json` of a bundle.

Accepted: a local Hugging Face folder, a `tokenizer.json`, a folder (or either file) with `vocab.json` and `merges.txt`
(byte-level BPE of RoBERTa or CLIP), with OpenAI's `bpe_simple_vocab_16e6.txt.gz` (CLIP), or with `vocab.txt` (BERT's
WordPiece). Names are resolved by `export.checkpoints.download`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from runtime.bundle.placeholder import describe_placeholder
from runtime.errors import UserError, summarize

FILE = "tokenizer.json"
PROBE = "a person riding a horse on the left"
SPECIAL_PAIRS = (("<s>", "</s>"), ("[CLS]", "[SEP]"), ("<|startoftext|>", "<|endoftext|>"))
"""Tokens before and after a sentence, for RoBERTa, BERT and CLIP."""

CLIP_MERGES = "bpe_simple_vocab_16e6.txt"
"""OpenAI's list of merges; a `.gz` of it is what CLIP's and SAM 3's repositories contain."""

CLIP_MERGE_COUNT = 49152 - 256 - 2
"""Merges that CLIP's vocabulary contains: the first ones of the list, which is longer."""

MAX_LIST_BYTES = 1 << 26
"""Maximum size of a list of merges, which may be compressed; CLIP's has 3 MB."""

CLIP_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def load(source: str | Path, vocabulary: int | None = None) -> Tokenizer:
    """Load the tokenizer at `source` and check it on a sentence; `vocabulary` is the number of token embeddings.

    Raises UserError for a file that is missing, damaged, without tokens around a sentence, or beyond the vocabulary.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(
            f"{source}: no such tokenizer; give a Hugging Face folder, tokenizer.json, vocab.json "
            f"beside merges.txt, vocab.txt, or {CLIP_MERGES}.gz"
        )
    folder = source if source.is_dir() else source.parent
    listed = [folder / (CLIP_MERGES + end) for end in (".gz", "") if (folder / (CLIP_MERGES + end)).is_file()]
    if source.is_file() and (source.suffix == ".gz" or source.name == CLIP_MERGES):
        tokenizer, path = _clip_from_merges(source), source
    elif source.is_file() and source.name not in ("vocab.json", "merges.txt", "vocab.txt"):
        tokenizer, path = _from_file(source), source
    elif (folder / FILE).is_file() and source.is_dir():
        tokenizer, path = _from_file(folder / FILE), folder / FILE
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer, path = _from_pair(folder / "vocab.json", folder / "merges.txt"), folder / "vocab.json"
    elif (folder / "vocab.txt").is_file():
        tokenizer, path = _bert(folder / "vocab.txt"), folder / "vocab.txt"
    elif listed:
        tokenizer, path = _clip_from_merges(listed[0]), listed[0]
    else:
        raise UserError(
            f"{folder}: contains neither {FILE} nor vocab.json with merges.txt nor vocab.txt nor {CLIP_MERGES}.gz; "
            "give --tokenizer another folder"
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


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Read token ids. Raises UserError."""
    _check_downloaded(path)
    try:
        vocab = json.loads(path.read_bytes())
        if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
            raise ValueError("not an object of token -> number")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a vocabulary ({summarize(error, 200)}); copy it again") from None
    return vocab


def _read_merges(path: Path) -> list[Any]:
    """Read pairs of tokens, from a compressed file too. Raises UserError."""
    _check_downloaded(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            lines = file.read(MAX_LIST_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a list of merges ({summarize(error, 200)}); copy it again") from None
    # the first line is a version comment, in OpenAI's file with the name before it; '#' may also begin a merge
    first = 1 if lines and "#version" in lines[0] else 0
    pairs = [tuple(line.split(" ")) for line in lines[first:] if line.strip()]
    bad = next((i for i, pair in enumerate(pairs) if len(pair) != 2), None)
    if bad is not None:
        raise UserError(f"{path}: merge {bad + 1} is not two tokens; copy the file again")
    return pairs


def _from_pair(vocabulary: Path, merges: Path) -> Tokenizer:
    """Build byte-level BPE of RoBERTa or CLIP, whichever the special tokens show."""
    vocab, pairs = _read_vocabulary(vocabulary), _read_merges(merges)
    if all(token in vocab for token in SPECIAL_PAIRS[2]):
        return _clip(vocab, pairs, merges)
    for token in SPECIAL_PAIRS[0]:
        if token not in vocab:
            raise UserError(f"{vocabulary}: has no {token!r}; give the vocabulary of roberta-base or CLIP")
    return _roberta(vocab, pairs, merges)


def _model(vocab: dict[str, int], pairs: list[Any], merges: Path, **options: str | None) -> Tokenizer:
    try:
        return Tokenizer(BPE(vocab=vocab, merges=pairs, **options))
    except BaseException as error:
        _failed(merges, error)
        raise UserError(
            f"{merges}: does not fit its vocabulary ({summarize(error, 200)}); give the files of one model"
        ) from None


def _roberta(vocab: dict[str, int], pairs: list[Any], merges: Path) -> Tokenizer:
    """Build byte-level BPE as in `roberta-base`: no leading blank, `<s>` sentence `</s>`, offsets without blanks."""
    tokenizer = _model(vocab, pairs, merges, unk_token="<unk>" if "<unk>" in vocab else None)
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


def _clip_from_merges(path: Path) -> Tokenizer:
    """Build CLIP's tokenizer from OpenAI's list of merges, which determines the vocabulary."""
    pairs = _read_merges(path)[:CLIP_MERGE_COUNT]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # by code point: printable bytes before the shifted ones
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in pairs)]
    vocab = {word: i for i, word in enumerate([*words, *SPECIAL_PAIRS[2]])}
    return _clip(vocab, pairs, path)


def _clip(vocab: dict[str, int], pairs: list[Any], merges: Path) -> Tokenizer:
    """Build byte-level BPE as in CLIP: lower case, words end with `</w>`, `<|startoftext|>` words `<|endoftext|>`."""
    start, end = SPECIAL_PAIRS[2]
    tokenizer = _model(vocab, pairs, merges, unk_token=end, continuing_subword_prefix="", end_of_word_suffix="</w>")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocab[end]), (start, vocab[start]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (start, end)])
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
