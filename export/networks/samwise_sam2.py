"""One set of weights for sentences (SAMWISE's schedule) and for clicks, boxes and masks (SAM 2's): what nano is trained as.

The bundle holds the stages of both. They share `memory_attention`, which then takes the wider of both ranges of sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..models.samwise import Samwise
from ..stage import Stage
from ..verify.references import samwise_clip
from . import sam2, samwise

clip = samwise_clip


def load(path: str | Path) -> Samwise:
    """A SAMWISE checkpoint whose weights were trained for prompts of both kinds. Raises UserError."""
    return samwise.load(path)


def settings(model: Samwise) -> dict[str, Any]:
    """Settings of both networks, by name."""
    return samwise.settings(model) | sam2.settings(model)


def stages(model: Samwise) -> list[Stage]:
    """SAMWISE's stages, then those that only SAM 2 has."""
    sentences, prompts = samwise.stages(model), {s.name: s for s in sam2.stages(model)}
    both = _union([*sentences, *prompts.values()])
    # SAM 2 may look at no pointer at all, so its stage takes every memory that SAMWISE has; engines are tuned for SAMWISE's
    chosen = [
        replace(other, spec=replace(other.spec, typical=s.spec.typical)) if (other := prompts.pop(s.name, None)) else s
        for s in sentences
    ]
    return [replace(s, bounds={symbol: both[symbol] for symbol in s.bounds}) for s in (*chosen, *prompts.values())]


def _union(stages: Iterable[Stage]) -> dict[str, tuple[int, int]]:
    """The widest bounds of every symbol."""
    found: dict[str, tuple[int, int]] = {}
    for stage in stages:
        for symbol, (low, high) in stage.bounds.items():
            other = found.get(symbol, (low, high))
            found[symbol] = min(low, other[0]), max(high, other[1])
    return found
