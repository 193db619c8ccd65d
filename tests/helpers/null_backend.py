"""Backend that loads nothing and returns zeros, so that everything around the graphs runs in microseconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.device.base import Cpu


class NullBackend:
    name, variants = "null", ("default",)

    def __init__(self) -> None:
        self.device = Cpu()

    def load(self, file: Path, spec: Any) -> NullStage:
        return NullStage(spec)


@dataclass
class NullStage:
    spec: Any

    def run(self, **arrays: Any) -> None:
        for tensor in self.spec.outputs:
            arrays[tensor.name][...] = 0
