"""Recorder of the outputs of stages, for `Engine.instrument`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from runtime.backends.base import Stage
from runtime.bundle.manifest import StageSpec


@dataclass
class Recorder:
    """Keeps copies of the outputs with these names (all if None), for stages on the host.

    `calls` lists (stage, outputs by name) of every call in order.
    """

    names: tuple[str, ...] | None = None
    calls: list[tuple[str, dict[str, np.ndarray]]] = field(default_factory=list)

    def __call__(self, stage: Stage) -> RecordedStage:
        return RecordedStage(stage, stage.spec, self)


@dataclass
class RecordedStage:
    """A stage whose outputs are recorded after each run."""

    stage: Stage
    spec: StageSpec
    recorder: Recorder

    def run(self, **arrays: np.ndarray) -> None:
        self.stage.run(**arrays)
        names = [t.name for t in self.spec.outputs if self.recorder.names is None or t.name in self.recorder.names]
        self.recorder.calls.append((self.spec.name, {name: np.array(arrays[name]) for name in names}))
