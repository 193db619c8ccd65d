"""Fuzz targets by name. `checkpoint` needs torch, which is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what is fuzzed must not be imported before it is instrumented
    from .inputs import Target

TARGETS = {
    "manifest": "fuzz.bundles:BUNDLE",
    "prompt": "fuzz.inputs:PROMPT",
    "video": "fuzz.inputs:VIDEO",
    "checkpoint": "fuzz.checkpoints:CHECKPOINT",
    "tokenizer": "fuzz.bundles:TOKENIZER",
}


def target(name: str) -> Target:
    """One of `TARGETS`."""
    module, _, attribute = TARGETS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
