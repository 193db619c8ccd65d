"""Fuzz targets by name. `checkpoint` needs torch, which is imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what is fuzzed must not be imported before it is instrumented
    from .fuzz_inputs import Target

TARGETS = {
    "manifest": "benchmarks.fuzz_bundles:BUNDLE",
    "prompt": "benchmarks.fuzz_inputs:PROMPT",
    "video": "benchmarks.fuzz_inputs:VIDEO",
    "checkpoint": "benchmarks.fuzz_checkpoints:CHECKPOINT",
    "tokenizer": "benchmarks.fuzz_bundles:TOKENIZER",
}


def target(name: str) -> Target:
    """One of `TARGETS`."""
    module, _, attribute = TARGETS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
