"""What a stream hands out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from ..results import Result


class Outcome(Enum):
    """What became of a frame, or that the stream is over."""

    DONE = "done"
    DROPPED = "dropped"
    FAILED = "failed"
    END = "end"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one frame; after the last one, `Outcome.END`. Frames that are missing then are lost.

    tag       as given to `Stream.put` with the frame
    result    of a frame that is done
    error     of a frame that failed; at the end: what ended the stream, None if its owner did
    waited    seconds from the arrival of the frame to the beginning of its computation
    computed  seconds that the engine computed for the stream since its result before
    """

    outcome: Outcome
    tag: Any = None
    result: Result | None = None
    error: Exception | None = None
    waited: float = 0.0
    computed: float = 0.0
