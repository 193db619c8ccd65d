"""Sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import PromptError
from .numbers import check_unmasked, integers

MAX_CHARACTERS = 10_000
"""A text longer than this is refused before it is tokenized: no network takes it, and tokenizing it takes seconds."""


@dataclass(frozen=True, slots=True)
class Text:
    """A referring expression, as `text` or as the `tokens` of the bundle's vocabulary (with `<s>` and `</s>`).

    `verbs` names the verbs for bundles with a motion prompt: indices into the token sequence, counted with the special
    tokens; or, beside `text`, words of the sentence. Raises PromptError unless exactly one of text and tokens is given.
    """

    text: str | None = None
    tokens: Sequence[int] | None = field(default=None, kw_only=True)
    verbs: Sequence[int | str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if (self.text is None) == (self.tokens is None):
            raise PromptError("Text takes either a text or tokens=[...], exactly one of them")
        if self.text is not None:
            _check_text(self.text)
        else:
            tokens = integers(self.tokens, "tokens")
            if not tokens:
                raise PromptError("Text(tokens=[]) is empty; give at least one token id")
            object.__setattr__(self, "tokens", tokens)
        if self.verbs is not None:
            object.__setattr__(self, "verbs", _verbs(self.verbs, has_text=self.text is not None))

    @property
    def label(self) -> str:
        """Text to show beside the mask."""
        if self.text is not None:
            return " ".join(self.text.split())
        tokens = list(self.tokens or ())
        return f"tokens {','.join(map(str, tokens[:8]))}" + (",..." if len(tokens) > 8 else "")


def check_texts(prompts: Any, kinds: str = "runtime.Text") -> Sequence[Text]:
    """Return the prompts. Raises PromptError, which names `kinds`, unless they are a list of at least one Text."""
    if (
        isinstance(prompts, (str, Text))
        or (not isinstance(prompts, Sequence) and not isinstance(prompts, np.ndarray))
        or not all(isinstance(p, Text) for p in prompts)
    ):
        raise PromptError(f"prompts must be a list of {kinds}, e.g. [runtime.Text('the horse on the left')]")
    if not len(prompts):
        raise PromptError(f"no prompt: give at least one {kinds}")
    return list(prompts)


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise PromptError(f"a text prompt must be a str, not {type(text).__name__}")
    if not text:
        raise PromptError('the text prompt is empty; describe the object, like "the horse jumping"')
    if not text.strip() or not any(c.isprintable() and not c.isspace() for c in text):
        raise PromptError('the text prompt is blank; describe the object, like "the horse jumping"')
    if len(text) > MAX_CHARACTERS:
        raise PromptError(f"the text prompt has {len(text)} characters, more than {MAX_CHARACTERS}; shorten it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PromptError("the text prompt is not text (bytes that are no UTF-8); retype it") from None
    control = next((c for c in text if ord(c) < 32 and not c.isspace()), None)
    if control is not None:
        raise PromptError(f"the text prompt is not text (control character {ord(control):#04x} in it); retype it")


def _verbs(verbs: Any, has_text: bool) -> tuple[int | str, ...]:
    if isinstance(verbs, str) or not isinstance(verbs, (Iterable, np.ndarray)):
        raise PromptError("verbs must be a list of token positions or words")
    check_unmasked(verbs, "verbs")
    verbs = tuple(verbs)
    words = tuple(v for v in verbs if isinstance(v, str))
    if len(words) == len(verbs):
        if words and not has_text:
            raise PromptError("verbs of a prompt given as tokens must be token positions, not words")
        return words
    return integers(verbs, "verbs")
