"""Recorder of stage inputs and outputs, for comparing two backends on the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle.manifest import STEP
from ..device.base import Device
from ..prompts.synthetic import synthetic_text
from .base import Stage

if TYPE_CHECKING:
    from ..engine import Engine


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One call of a stage: symbol -> size, and host copies of its tensors by name."""

    sizes: dict[str, int]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


class StageRecorder:
    """A stage that counts its calls and records the first and the latest one.

    With `once_per_size` it records the first call at the first and at the latest sizes instead: an empty memory and a
    full one.
    """

    def __init__(self, stage: Stage, device: Device, once_per_size: bool = False) -> None:
        self.stage, self.spec, self.calls = stage, stage.spec, 0
        self._device, self._once_per_size = device, once_per_size
        self._records: dict[Any, StageRecord] = {}

    @property
    def records(self) -> list[StageRecord]:
        """At most two records, in the order of the calls."""
        return list(self._records.values())

    def run(self, **arrays: Any) -> None:
        """Run the stage; see `backends.base.Stage`."""
        self.stage.run(**arrays)
        sizes = {
            symbol: int(arrays[tensor.name].shape[axis])
            for tensor in (*self.spec.inputs, *self.spec.outputs)
            for axis, symbol in enumerate(tensor.shape)
            if isinstance(symbol, str)
        }
        key = tuple(sorted(sizes.items())) if self._once_per_size else self.calls
        self.calls += 1
        if key in self._records:
            return
        if len(self._records) > 1:
            self._records.popitem()
        host = {name: np.array(self._device.download(array)) for name, array in arrays.items()}
        self._records[key] = StageRecord(
            sizes, {t.name: host[t.name] for t in self.spec.inputs}, {t.name: host[t.name] for t in self.spec.outputs}
        )


class StageRecorders(dict[str, StageRecorder]):
    """Recorders by stage name; pass `wrap` to `Engine.instrument`."""

    def __init__(self, device: Device, once_per_size: bool = False) -> None:
        super().__init__()
        self._device, self._once_per_size = device, once_per_size

    def wrap(self, stage: Stage) -> StageRecorder:
        """Return a recorder around `stage`."""
        recorder = self[stage.spec.name] = StageRecorder(stage, self._device, self._once_per_size)
        return recorder

    def wrap_step(self, stage: Stage) -> Stage:
        """Return a recorder around a stage of low latency, and another stage as it is."""
        return self.wrap(stage) if stage.spec.name.endswith(STEP) else stage

    def wrap_other(self, stage: Stage) -> Stage:
        """Return a recorder around a stage that is none of low latency, and such a one as it is."""
        return stage if stage.spec.name.endswith(STEP) else self.wrap(stage)


def run_steps(engine: Engine, frames: Sequence[np.ndarray]) -> None:
    """Run the stages of low latency, which a clip does not need, if the bundle has them: on the last frame."""
    manifest = engine.bundle.manifest
    if manifest.text is not None and any(name.endswith(STEP) for name in manifest.stages):
        with engine.session([synthetic_text(manifest.text)], latency="low", window=len(frames) - 1) as session:
            for frame in frames:
                session.push(frame)
