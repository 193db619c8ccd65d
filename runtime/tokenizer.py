"""Tokenization: sentences to token ids, and the positions of verbs among them.

Checks of a prompt that depend on the bundle (vocabulary, length limit, presence of a tokenizer) are here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import versions
from .bundle.manifest import Manifest
from .errors import BundleError, PromptError, summarize
from .prompts import Text

TOKENIZER = "tokenizer.json"


class Tokenizer:
    """A bundle's `tokenizer.json`. The `tokenizers` library is loaded on first use, not with the package."""

    def __init__(self, path: Path) -> None:
        """`path`: the file, or the folder that holds it. Raises BundleError if it is missing or damaged."""
        path = Path(path)
        path = path / TOKENIZER if path.is_dir() else path
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError:
            raise PromptError(
                "text prompts need the tokenizers library: pip install tokenizers, or pass token ids"
            ) from None
        if not path.is_file():
            raise BundleError(f"{path}: the bundle names this tokenizer but it is not there; export the bundle again")
        try:
            self._backend = Backend.from_file(str(path))
        except BaseException as error:
            raise _damaged(path, error) from None
        self._path = path
        # some files carry padding and truncation; sentences are encoded one by one and refused when too long
        self._backend.no_padding()
        self._backend.no_truncation()

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> Tokenizer | None:
        """Return the tokenizer of a bundle, or None if it was exported without one."""
        return None if manifest.tokenizer is None else cls(Path(folder) / manifest.tokenizer)

    def __call__(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return token ids with special tokens, and the character span of each, (0, 0) for special ones."""
        try:
            encoding = self._backend.encode(text)
        except BaseException as error:
            raise _damaged(self._path, error) from None
        ids, spans = list(encoding.ids), list(encoding.offsets)
        first, last = self._backend.token_to_id("<s>"), self._backend.token_to_id("</s>")
        # RoBERTa layout, also where the file carries no post-processor that adds it
        if first is not None and last is not None and (not ids or ids[0] != first):
            ids, spans = [first, *ids, last], [(0, 0), *spans, (0, 0)]
        return ids, spans


def _damaged(path: Path, error: BaseException) -> BundleError:
    """Return the error to raise. The library raises bare Exception, and BaseException where it panics; others pass."""
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        raise error
    import tokenizers

    return BundleError(f"{path}: not a working tokenizer ({summarize(error)}); {versions.remedy(tokenizers)}")


def encode(prompt: Text, manifest: Manifest, tokenizer: Tokenizer | None) -> np.ndarray:
    """Return the token ids of a prompt, int64 (L,), special tokens included.

    Text is lower-cased and its white space collapsed first, as the networks were trained. Raises PromptError: no
    tokenizer in the bundle, too many tokens for it, or an id outside its vocabulary.
    """
    limits = manifest.text
    if not isinstance(prompt, Text):
        raise PromptError(f"{type(prompt).__name__} is not a sentence; this bundle ({manifest.variant}) takes Text")
    if not limits:
        raise PromptError(f"the bundle {manifest.variant} takes no text prompts; choose another with --model")
    tokens, _ = _tokenize(prompt, manifest, tokenizer)
    longest = limits["max_tokens"]
    if len(tokens) > longest:
        raise PromptError(
            f"the prompt {_short(prompt.label)} has {len(tokens)} tokens, more than the {longest} that "
            f"{manifest.variant} takes; shorten it"
        )
    _check_vocabulary(tokens, manifest)
    return np.array(tokens, np.int64)


def _check_vocabulary(tokens: Sequence[int], manifest: Manifest) -> None:
    vocabulary = (manifest.text or {})["vocabulary"]
    for position, token in enumerate(tokens):
        if not 0 <= token < vocabulary:
            raise PromptError(
                f"token {token} at position {position} is outside the vocabulary 0..{vocabulary - 1} "
                f"of {manifest.variant}"
            )


def encode_concept(words: Text, manifest: Manifest, tokenizer: Tokenizer | None) -> tuple[np.ndarray, bool]:
    """Return the token ids of a concept, int64 (L,), cut or padded to the length that the bundle takes, and whether
    they are cut: as the reference does, the last token then ends the sentence.

    Raises PromptError: no tokenizer in the bundle, no word left after cleaning, or an id outside its vocabulary.
    """
    limits = manifest.text or {}
    words = words if words.text is None else Text(_repaired(words.text))
    tokens, _ = _tokenize(words, manifest, tokenizer)
    longest = limits["max_tokens"]
    cut = len(tokens) > longest
    _check_vocabulary(tokens, manifest)
    tokens = [*tokens[: longest - 1], tokens[-1]] if cut else tokens + [limits["padding"]] * (longest - len(tokens))
    return np.array(tokens, np.int64), cut


def _repaired(text: str) -> str:
    """Repair mojibake and odd characters and replace HTML entities, as CLIP's official tokenizer does."""
    try:
        import ftfy
    except ImportError:
        raise PromptError("words of concepts need the ftfy library: pip install ftfy, or pass token ids") from None
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def verb_positions(prompt: Text, manifest: Manifest, tokenizer: Tokenizer | None) -> np.ndarray:
    """Return the positions of the prompt's verbs in its token sequence, int64 (V,), in order; empty if it names none.

    Raises PromptError: a position outside the sequence, a word that the sentence does not hold, or a bundle without a
    motion prompt.
    """
    if not prompt.verbs:
        return np.empty(0, np.int64)
    if not (manifest.text or {}).get("motion"):
        raise PromptError(f"the bundle {manifest.variant} has no motion prompt; remove verbs")
    ids, spans = _tokenize(prompt, manifest, tokenizer)
    found: set[int] = set()
    for verb in prompt.verbs:
        if isinstance(verb, str):
            found.update(_positions(verb, _clean(prompt.text or "", manifest), spans))
        elif not 0 <= verb < len(ids):
            raise PromptError(f"verb position {verb} is outside the {len(ids)} tokens of {_short(prompt.label)}")
        else:
            found.add(verb)
    return np.array(sorted(found), np.int64)


def _clean(text: str, manifest: Manifest) -> str:
    text = " ".join(text.split())
    return text.lower() if (manifest.text or {}).get("lowercase", True) else text


def _tokenize(prompt: Text, manifest: Manifest, tokenizer: Tokenizer | None) -> tuple[list[int], list[tuple[int, int]]]:
    """Return token ids, and the character span of each; no spans where the prompt is given as tokens."""
    if prompt.text is None:
        return list(prompt.tokens or ()), []
    if tokenizer is None:
        raise PromptError(
            f"the bundle {manifest.variant} has no tokenizer; export it again with --tokenizer DIR, "
            "or pass token ids (Text(tokens=[...]), --tokens on the command line)"
        )
    return tokenizer(_clean(prompt.text, manifest))


def _positions(word: str, text: str, spans: list[tuple[int, int]]) -> list[int]:
    """Return the tokens within the first occurrence of `word` as a whole word; a leading blank belongs to a token."""
    word, start = word.strip().lower(), 0
    for piece in text.split(" "):
        if piece.strip(".,;:!?\"'").lower() == word:
            end = start + len(piece)
            return [i for i, (a, b) in enumerate(spans) if b > a and max(a, start) < min(b, end)]
        start += len(piece) + 1
    raise PromptError(f"the verb {word!r} is not a word of {_short(text)}")


def _short(text: str, limit: int = 40) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
