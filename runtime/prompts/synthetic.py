"""A sentence of seeded tokens, for runs whose words do not matter: comparisons, timings, warming."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .text import Text


def synthetic_tokens(vocabulary: int, longest: int, seed: int = 0) -> list[int]:
    """Return `<s>`, at most seven seeded tokens, `</s>`, all inside the vocabulary."""
    count = max(0, min(7, longest - 2))
    inner = np.random.default_rng(seed).integers(3, vocabulary, count).tolist() if vocabulary > 3 else []
    return [0, *inner, 2 % vocabulary]


def synthetic_text(settings: Mapping[str, Any], seed: int = 0) -> Text:
    """Return a sentence for a bundle's `text` settings, its first word a verb where the network asks for verbs."""
    tokens = synthetic_tokens(settings["vocabulary"], settings["max_tokens"], seed)
    return Text(tokens=tokens, verbs=[1] if settings.get("motion") and len(tokens) > 2 else None)
