"""Frames of one stream that wait, and calls between them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UserError
from ..prompts import Mask
from ..results import Stamp

now = time.monotonic
Call = Callable[[], None]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream shares the engine.

    keep               `all`: where it is full it refuses a frame, so that its source waits; `latest`: it drops the
                       oldest waiting frame, but none with prompts
    weight             its share of the engine, relative to other streams
    deadline           seconds after which a waiting frame without prompts is dropped; None: never
    rate               frames a second that it will bring, for admission; None: it takes what is left
    max_pending        frames that may wait
    max_pending_bytes  bytes of the frames that may wait, with the masks in their prompts; one frame always may
    """

    keep: Literal["all", "latest"] = "all"
    weight: float = 1.0
    deadline: float | None = None
    rate: float | None = None
    max_pending: int = 16
    max_pending_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.keep not in ("all", "latest"):
            raise UserError(f"keep must be 'all' or 'latest', not {self.keep!r}")
        for name in ("weight", "deadline", "rate", "max_pending", "max_pending_bytes"):
            value = getattr(self, name)
            if value is None and name in ("deadline", "rate"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise UserError(f"{name} must be a number above 0, not {value!r}")


@dataclass(frozen=True, slots=True, eq=False)
class PendingFrame:
    """A frame that waits."""

    image: Any
    prompts: Mapping[int, Any] | None
    tag: Any
    time: float | Stamp | None
    arrival: float
    """`now()` when it came."""

    @property
    def nbytes(self) -> int:
        """Memory of its pixels and masks."""
        masks = sum(prompt.array.nbytes for prompt in (self.prompts or {}).values() if isinstance(prompt, Mask))
        return masks + int(getattr(self.image, "nbytes", 0))


class Pending:
    """Bounded queue of frames, and of calls, which take no room. Its user holds a lock."""

    def __init__(self, options: StreamOptions) -> None:
        self._options = options
        self._items: deque[PendingFrame | Call] = deque()
        self.dropped: deque[Any] = deque()
        """Tags of frames that were dropped, until somebody takes them."""
        self.is_ended = False

    def __bool__(self) -> bool:
        return bool(self._items or self.dropped)

    @property
    def frames(self) -> list[PendingFrame]:
        """The frames, oldest first."""
        return [item for item in self._items if isinstance(item, PendingFrame)]

    def add(self, frame: PendingFrame) -> bool:
        """Add a frame, dropping older ones if the options say so; return False if there is no room.

        Raises UserError after the end, as does `add_call`.
        """
        self._check_open()
        while not self._has_room(frame):
            if self._options.keep == "all" or not self._drop_oldest():
                return False
        self._items.append(frame)
        return True

    def add_call(self, call: Call) -> None:
        """Add a call, which comes after the frames that wait."""
        self._check_open()
        self._items.append(call)

    def pop(self) -> PendingFrame | Call | None:
        """Return what is next, dropping frames that are past their deadline."""
        limit = self._options.deadline
        while self._items:
            item = self._items.popleft()
            if limit is None or not isinstance(item, PendingFrame) or item.prompts or now() - item.arrival <= limit:
                return item
            self.dropped.append(item.tag)
        return None

    def clear(self) -> list[Call]:
        """Drop all frames; return the calls."""
        self.dropped.extend(frame.tag for frame in self.frames)
        calls = [item for item in self._items if not isinstance(item, PendingFrame)]
        self._items.clear()
        return calls

    def _check_open(self) -> None:
        if self.is_ended:
            raise UserError("this stream has ended; open another one")

    def _has_room(self, new: PendingFrame) -> bool:
        frames = self.frames
        nbytes = sum(frame.nbytes for frame in (*frames, new))
        few = len(frames) < self._options.max_pending and nbytes <= self._options.max_pending_bytes
        return few or not frames

    def _drop_oldest(self) -> bool:
        """Drop the oldest frame without prompts; return False if there is none."""
        for frame in self.frames:
            if not frame.prompts:
                self._items.remove(frame)
                self.dropped.append(frame.tag)
                return True
        return False
