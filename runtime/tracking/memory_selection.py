"""Memory selection: the past frames that a frame attends to (rules of SAM 2's video predictor)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .object_memory import Block
from .state import TrackedObject, TrackingOptions

Output = TypeVar("Output")


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """Size of a network's memory: `num_maskmem` remembered maps with their rows of the temporal embedding (the last row
    is that of conditioning frames), `max_obj_ptrs` object pointers."""

    num_maskmem: int
    max_obj_ptrs: int


@dataclass(frozen=True, slots=True)
class MemorySelection:
    """Memory that one object attends to from one frame.

    blocks      remembered maps, with their rows of the temporal embedding in `tpos`
    obj_ptrs    object pointers (D,), with their distance in frames in `distances`
    max_distance  the distance by which distances are divided
    """

    blocks: list[Block]
    tpos: list[int]
    obj_ptrs: list[np.ndarray]
    distances: list[int]
    max_distance: int

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of maps and pointers. Objects of equal shape share a call of memory attention."""
        return len(self.blocks), len(self.obj_ptrs)


def select_memory(
    tracked: TrackedObject,
    frame: int,
    num_frames: int | None,
    reverse: bool,
    config: MemoryConfig,
    options: TrackingOptions,
) -> MemorySelection:
    """Select the memory that `tracked` attends to from `frame` of `num_frames` frames (None: without end)."""
    selected, unselected = select_cond_frames(frame, tracked.cond_outputs, options.max_cond_frames_in_attn)
    sign = -1 if reverse else 1
    blocks = [(config.num_maskmem - 1, output.block) for output in selected.values() if output.block is not None]
    for tpos, past in strided_frames(frame, reverse, config.num_maskmem, options.memory_temporal_stride):
        output = tracked.non_cond_outputs.get(past) or unselected.get(past)
        if output is not None and output.block is not None:
            blocks.append((tpos, output.block))
    # attention does not see their order, and sorted blocks lie side by side more often
    blocks.sort(key=lambda item: item[1].number)
    pointers = [((frame - t) * sign, output.obj_ptr) for t, output in selected.items() if (frame - t) * sign >= 0]
    max_distance = (config.max_obj_ptrs if num_frames is None else min(config.max_obj_ptrs, num_frames)) - 1
    for distance in range(1, max_distance + 1):
        past = frame - sign * distance
        if past < 0 or (num_frames is not None and past >= num_frames):
            break
        output = tracked.non_cond_outputs.get(past) or unselected.get(past)
        if output is not None:
            pointers.append((distance, output.obj_ptr))
    return MemorySelection(
        blocks=[block for _, block in blocks],
        tpos=[tpos for tpos, _ in blocks],
        obj_ptrs=[pointer for _, pointer in pointers],
        distances=[distance for distance, _ in pointers],
        max_distance=max_distance,
    )


def strided_frames(frame: int, reverse: bool, num_maskmem: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield (row of the temporal embedding, frame) of remembered frames besides conditioning ones, furthest first."""
    sign = -1 if reverse else 1
    # multiples of the stride, counted from two frames back; the frame just before is always one of them
    nearest = -(-(frame + 2) // stride) * stride if reverse else (frame - 2) // stride * stride
    for back in range(num_maskmem - 1, 1, -1):
        yield back - 1, nearest - sign * (back - 2) * stride
    yield 0, frame - sign


def select_cond_frames(
    frame: int, cond_outputs: Mapping[int, Output], limit: int | None
) -> tuple[Mapping[int, Output], Mapping[int, Output]]:
    """Split conditioning frames into those attended to (nearest on each side, then nearest of all) and the rest."""
    if limit is None or len(cond_outputs) <= limit:
        return cond_outputs, {}
    before = max((t for t in cond_outputs if t < frame), default=None)
    after = min((t for t in cond_outputs if t >= frame), default=None)
    chosen = [t for t in (before, after) if t is not None]
    rest = sorted((t for t in cond_outputs if t not in chosen), key=lambda t: abs(t - frame))
    chosen += rest[: limit - len(chosen)]
    selected = {t: cond_outputs[t] for t in chosen}
    return selected, {t: output for t, output in cond_outputs.items() if t not in selected}
