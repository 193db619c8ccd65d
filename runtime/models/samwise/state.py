"""State of the objects of a text session, and the inputs of one frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...device.base import Array
from ...device.graphs import GraphCache
from ...device.scratch import ReadbackBuffer
from ...tracking.object_memory import ObjectMemory
from .kept_maps import KeptMaps
from .transforms import Transforms


@dataclass(slots=True)
class TextTrack:
    """One prompt tracked through one video."""

    maskmem: ObjectMemory
    """Ring of the features of the newest frames."""
    obj_ptrs: ObjectMemory
    """Ring of the object pointers of the newest frames."""
    features: Mapping[str, Array]
    """Arrays of the prompt alone, named as in the stages: `text_0`, `sparse`, and the maps of the current clip
    (window, ...): `embedding`, `embedding_no_memory`, `high_res_1`."""
    sparse_count: int
    last_switch_frame: int = 0
    """Last frame on which the conditional memory encoder replaced the mask to remember."""
    kept: KeptMaps | None = None
    """With low latency: maps of the latest frames."""
    encoded: Mapping[str, Array] = field(default_factory=dict)
    """With `encode_ahead`: maps of the next clip, and its sentence, until they are copied to `features`."""

    def restart(self) -> None:
        """Forget all frames."""
        self.maskmem.restart()
        self.obj_ptrs.restart()
        self.last_switch_frame = 0

    def close(self) -> None:
        """Release the memory of the object."""
        self.maskmem.close()
        self.obj_ptrs.close()


@dataclass(slots=True, eq=False)
class TrackBatch:
    """Tracks that are decoded together. They start on the same frame, so their memories are equally full."""

    tracks: Sequence[TextTrack]
    sparse_count: Array
    maskmem_tpos_indices: Sequence[Array]
    """(n, filled) row of the temporal embedding of each slot, for frames f < 2 * slots, then with period `slots`."""
    readback: ReadbackBuffer
    graphs: GraphCache
    cme: Mapping[str, int] | None
    """Rule of the conditional memory encoder: `first` frame, `every` so many frames; None: it never runs."""
    uses_memory: bool

    def cme_due(self, frame: int) -> list[int]:
        """Return the tracks for which the conditional memory encoder runs: `every` frames after its last switch."""
        if self.cme is None or frame < self.cme["first"]:
            return []
        return [i for i, t in enumerate(self.tracks) if frame - t.last_switch_frame >= self.cme["every"]]


@dataclass(frozen=True, slots=True, eq=False)
class BatchFrame:
    """One frame of a batch of tracks.

    clip    arrays of the clip that the frame is in, `offset` its place there
    frame   its number in the video
    due     tracks for which the conditional memory encoder runs
    """

    batch: TrackBatch
    clip: Mapping[str, Array]
    frame: int
    offset: int
    transforms: Transforms
    due: Sequence[int]

    @property
    def has_memory(self) -> bool:
        """Whether there is memory to attend to."""
        return self.batch.uses_memory and self.frame > 0


@dataclass(frozen=True, slots=True)
class FrameInputs:
    """Inputs of the frame decoder for n tracks, named as in its stages."""

    embedding: Array
    embedding_no_memory: Array | None
    """Of all tracks if there is no memory, else of those that are due, None if none is."""
    high_res_0: Array
    high_res_1: Array
    sparse: Sequence[Array]
    sparse_count: Array
    picture_index: Array
    """(n,) row of `high_res_0` of each track."""
    cme_due: Sequence[int]
    """Tracks for which the conditional memory encoder runs."""
    picture_index_due: Array
    """(due,) row of `high_res_0` of each of these."""
    memory: Array | None = None
    """None, like the next two: no memory to attend to, on the first frame and with memory switched off."""
    maskmem_tpos_index: Array | None = None
    obj_ptrs: Array | None = None
