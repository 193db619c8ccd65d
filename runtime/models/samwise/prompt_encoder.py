"""A clip with one prompt: image trunk and text tower with cross-modal adapters between them, then the neck."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

from ...bundle.manifest import STEP
from ...device.base import Array, Device
from ...device.scratch import ScratchBuffers
from .kept_maps import KeptMaps

if TYPE_CHECKING:
    from ...backends.base import Stage

LEVELS = 3
"""Blocks of trunk and text tower, each followed by an adapter."""


class PromptEncoder:
    """Runs the stages of a clip with one prompt. What lies between them is scratch."""

    def __init__(
        self, stages: Mapping[str, Stage], device: Device, scratch: ScratchBuffers, sizes: Mapping[str, int]
    ) -> None:
        self._stages, self._device, self._scratch, self._sizes = stages, device, scratch, sizes

    def encode_at_once(self, own: Mapping[str, Array], length: int, ending: str = "") -> None:
        """Encode as `encode` does, in one step."""
        deque(self.encode(own, length, ending), maxlen=0)

    def encode(
        self, own: Mapping[str, Array], length: int, ending: str = "", kept: KeptMaps | None = None
    ) -> Iterator[None]:
        """Run trunk, text tower and adapters in lockstep: block k of each, then adapter k mixes the two.

        `own`: arrays of the clip and of the prompt by name. `ending` of the names of the adapters. `kept` gets the maps
        of the last frames, whose numbers are their offsets.
        """
        sizes = {**self._sizes, "frames": length, "tokens": own["text_0"].shape[0]}
        for k in range(LEVELS):
            if k > 0:
                yield from self._run_chunked(f"hiera_{k}", length, own)
                self._run(f"text_{k}", sizes, own)
            if kept is not None:
                self._keep(k, sizes, own, kept)
            self._run(f"adapter_{k}{ending}", sizes, own)
            yield
        yield from self._run_chunked("neck", length, own)
        self._run("text_prompt", sizes, own)

    def narrow(self, k: int) -> Array:
        """Map (h,w,A) of the frame of the latest step."""
        return self._scratch.view(f"narrow_{k}")[0]

    def _keep(self, k: int, sizes: Mapping[str, int], own: Mapping[str, Array], kept: KeptMaps) -> None:
        """Keep the maps of the last frames of a clip before its adapter k runs. What else a step writes is scratch."""
        stage, vision, length = f"adapter_{k}{STEP}", f"vision_{k}", sizes["frames"]
        maps = self._bind(f"adapter_{k}", sizes, own)[vision]
        for frame in range(max(0, length - kept.count), length):
            arrays = {**own, **kept.arrays, vision: maps[frame : frame + 1]}
            self._run(stage, sizes, arrays)
            kept.keep(k, frame, self.narrow(k))

    def _run(self, stage: str, sizes: Mapping[str, int], own: Mapping[str, Array]) -> None:
        self._stages[stage].run(**self._bind(stage, sizes, own))

    def _run_chunked(self, stage: str, length: int, own: Mapping[str, Array]) -> Iterator[None]:
        """Run a stage that never mixes frames, on at most `max_frames_per_call` of them at a time; on a host all small
        frames in one step, side by side."""
        arrays = self._bind(stage, {**self._sizes, "frames": length}, own)
        step, run, workers = self._device.max_frames_per_call or length, self._stages[stage].run, self._device.workers
        calls = [
            partial(run, **{name: array[at : min(at + step, length)] for name, array in arrays.items()})
            for at in range(0, length, step)
        ]
        together = len(calls) if workers.frames_of(self._stages[stage].spec) > 1 else 1
        for at in range(0, len(calls), together):
            workers.run_all(calls[at : at + together])
            yield

    def _bind(self, stage: str, sizes: Mapping[str, int], own: Mapping[str, Array]) -> dict[str, Array]:
        """Return the arrays of a stage by name: from `own`, else scratch. A tensor has one name in all stages."""
        spec, view = self._stages[stage].spec, self._scratch.view
        return {
            t.name: own[t.name] if t.name in own else view(t.name, t.resolve(sizes)[0])
            for t in (*spec.inputs, *spec.outputs)
        }
