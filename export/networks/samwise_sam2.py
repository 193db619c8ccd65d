"""One set of weights for sentences (SAMWISE) and for points, boxes and masks (SAM 2), as nano is trained.

The bundle contains the stages of both networks; `memory_attention` is shared and takes the union of both ranges of
sizes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..models.samwise import Samwise
from ..stage import Stage
from . import sam2, samwise
from .samwise import clip, load, variant

__all__ = ["clip", "load", "settings", "stages", "variant"]


def settings(model: Samwise) -> dict[str, Any]:
    """Return the settings of both networks."""
    return samwise.settings(model) | sam2.settings(model)


def stages(model: Samwise) -> list[Stage]:
    """Return SAMWISE's stages, then those that only SAM 2 has."""
    of_samwise, of_sam2 = samwise.stages(model), {s.name: s for s in sam2.stages(model)}
    bounds = _union([*of_samwise, *of_sam2.values()])
    merged = []
    for stage in of_samwise:
        shared = of_sam2.pop(stage.name, None)
        # SAM 2's stage allows a memory without pointers, so it takes every memory of SAMWISE; engines are tuned for
        # SAMWISE
        merged.append(replace(shared, spec=replace(shared.spec, typical=stage.spec.typical)) if shared else stage)
    merged += of_sam2.values()
    return [replace(stage, bounds={symbol: bounds[symbol] for symbol in stage.bounds}) for stage in merged]


def _union(stages: Iterable[Stage]) -> dict[str, tuple[int, int]]:
    """Return the widest bounds of every symbol."""
    bounds: dict[str, tuple[int, int]] = {}
    for stage in stages:
        for symbol, (low, high) in stage.bounds.items():
            other = bounds.get(symbol, (low, high))
            bounds[symbol] = min(low, other[0]), max(high, other[1])
    return bounds
