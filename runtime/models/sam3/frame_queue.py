"""Frames of a concept session until all concepts have shown them, and their results."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...results import Result, Stamp
from ...tracking.association import Shown


@dataclass(slots=True)
class _Frame:
    """A frame until all concepts that it was searched for have shown it."""

    stamp: Stamp
    waits_for: set[int]
    shown: dict[int, Shown] = field(default_factory=dict)


class FrameQueue:
    """Joins what the concepts of a session show of a frame; concepts are known by their numbers."""

    def __init__(self, low_res_side: int, logits: bool) -> None:
        self._side, self._logits = low_res_side, logits
        self._frames: dict[int, _Frame] = {}

    def add(self, index: int, stamp: Stamp, concepts: Collection[int]) -> None:
        """Add a frame that is searched for concepts."""
        self._frames[index] = _Frame(stamp, set(concepts))

    def show(self, concept: int, shown: Sequence[Shown]) -> None:
        """Take what a concept shows of frames."""
        for part in shown:
            frame = self._frames[part.frame_index]
            frame.shown[concept] = part
            frame.waits_for.discard(concept)

    def forget(self, concept: int) -> None:
        """Wait no longer for a concept."""
        for frame in self._frames.values():
            frame.waits_for.discard(concept)

    def release(self, size: tuple[int, int] | None) -> list[Result]:
        """Return the results, of `size` (H, W), of the oldest frames that all their concepts have shown.

        All of them wait still if it is interrupted.
        """
        ready = dict(itertools.takewhile(lambda item: not item[1].waits_for, sorted(self._frames.items())))
        if not ready or size is None:
            return []
        results = [self.result(index, frame.shown, size, frame.stamp) for index, frame in ready.items()]
        for index in ready:
            del self._frames[index]
        return results

    def result(self, index: int, parts: Mapping[int, Shown], size: tuple[int, int], stamp: Stamp) -> Result:
        """Join what concepts show of a frame, objects by ascending id."""
        owners = {obj: number for number, part in parts.items() for obj in part.object_ids}
        ids = np.array(list(owners), np.int64)
        order = np.argsort(ids)

        def joined(name: str, *shape: int) -> np.ndarray:
            arrays = [getattr(part, name) for part in parts.values()]
            both: np.ndarray = np.concatenate([np.zeros((0, *shape), np.float32), *arrays])
            return both[order]

        return Result(
            frame_index=index,
            object_ids=tuple(ids[order].tolist()),
            prompt_ids=tuple(owners[obj] for obj in ids[order].tolist()),
            masks=joined("masks", *size).astype(bool),
            scores=joined("scores"),
            boxes=joined("boxes", 4),
            score_logits=joined("score_logits"),
            low_res_logits=joined("low_res_logits", self._side, self._side) if self._logits else None,
            **stamp._asdict(),
        )
