"""What following objects through known videos and through live ones has in common: objects, prompts, results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import PromptError, UserError
from ..imaging.masks import boxes_and_areas, probability
from ..imaging.morphology import fill_holes
from ..imaging.upsample import MaskUpsampler
from ..prompts import Box, Mask, Points
from ..results import Result
from .object_memory import PagePool
from .state import Clicks, Options, Outcome, Track

Parsed = Clicks | np.ndarray
"""A prompt for the network: clicks (a box is two of them), or a bool mask at the network's size."""

ABSENT = -1024.0
"""Logit of every pixel, and score, of an object that nothing is known of on a frame."""

CROWDED_OUT = np.float32(-10.0)
"""Largest logit of a pixel that another object keeps."""


class Tracker:
    """Objects of one video. Use `VideoSession` or `LiveSession`; a context manager that gives the memory back."""

    def __init__(self, network: Any, logits: bool, options: Options, pool: PagePool, grows: bool) -> None:
        self._network, self._logits, self._options = network, logits, options
        self._pool, self._grows = pool, grows
        self._tracks: dict[int, Track] = {}
        self._size: tuple[int, int] | None = None
        self._upsampler: Any = None
        self._open = True
        self._owner: Any = None

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Objects in the order in which they were added."""
        return tuple(self._tracks)

    def close(self) -> None:
        """Give the memory back. Closing twice is harmless."""
        self._forget_all()
        self._open = False
        if self._owner is not None:
            self._owner.forget(self)

    def belongs_to(self, owner: Any) -> Any:
        """Tell `owner` (with a method `forget`) when this session closes. Returns the session."""
        self._owner = owner
        return self

    @property
    def ready(self) -> bool:
        """Whether a frame is waiting for `Engine.step`."""
        return False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- objects --------------------------------------------------------------------------------------------------

    def _track(self, obj: int) -> Track:
        """The object `obj`, made when it is new. Raises UserError when there is no room for it."""
        if obj not in self._tracks:
            self._tracks[obj] = Track(self._pool.rent(self._grows))
        return self._tracks[obj]

    def _known(self, obj: int) -> Track:
        try:
            return self._tracks[obj]
        except (KeyError, TypeError):
            have = ", ".join(map(str, self._tracks)) or "none"
            raise PromptError(f"there is no object {obj!r}; objects: {have}") from None

    def _forget(self, obj: int) -> None:
        self._tracks.pop(obj).bank.close()

    def _forget_all(self) -> None:
        for obj in list(self._tracks):
            self._forget(obj)

    # -- prompts --------------------------------------------------------------------------------------------------

    def _parse(self, prompt: Any) -> Parsed:
        """A prompt, or several that belong together (a box and points), checked against the size of the video."""
        parts = tuple(prompt) if isinstance(prompt, (list, tuple)) else (prompt,)
        if any(not isinstance(p, (Points, Box, Mask)) for p in parts) or not parts:
            raise PromptError(
                "a prompt must be runtime.Points, runtime.Box, runtime.Mask, or [Box, Points] together, "
                f"not {type(prompt).__name__}"
            )
        masks = [p for p in parts if isinstance(p, Mask)]
        boxes = [p for p in parts if isinstance(p, Box)]
        if (masks and len(parts) > 1) or len(boxes) > 1:
            raise PromptError("one object takes one mask alone, or at most one box, with or without points, per frame")
        if masks:
            return self._network.mask(masks[0].checked(*self._size))
        clicks = [self._clicks(p) for p in (*boxes, *(p for p in parts if isinstance(p, Points)))]
        return self._network.checked(sum(clicks[1:], clicks[0]))

    def _clicks(self, part: Points | Box) -> Clicks:
        part.scaled(*self._size)  # raises for what lies outside
        if isinstance(part, Box):
            xy, labels = np.array(part.xyxy).reshape(2, 2), np.array([2, 3])
        else:
            xy, labels = np.array(part.points), np.array(part.labels)
        return self._network.clicks(xy, labels, self._size, part.normalized)

    def _outcome(self, decoded: Any, prompted: bool = False) -> Outcome:
        """A decoder's answer as it is stored."""
        return Outcome(
            fill_holes(decoded.low_res_logits, self._options.fill_hole_area),
            decoded.score,
            decoded.pointer,
            decoded.selected,
            decoded.ious,
            decoded.memory_tokens,
            prompted=prompted,
        )

    def _mask_outcome(self, decoded: Any, logits: np.ndarray) -> Outcome:
        """The outcome of a mask prompt: the mask itself, with the decoder's pointer."""
        logits = fill_holes(logits, self._options.fill_hole_area)
        return Outcome(logits, 10.0, decoded.pointer, -1, np.full(4, np.nan, np.float32), (0, 0), prompted=True)

    # -- results --------------------------------------------------------------------------------------------------

    def _start(self, size: tuple[int, int]) -> None:
        self._size = size
        side = self._network.low_res_side
        self._upsampler = MaskUpsampler(side, side, (side, side), size)

    def _result(self, frame: int, shown: Mapping[int, Outcome | None]) -> Result:
        """What a caller gets: objects that nothing is known of have an empty mask."""
        side = self._network.low_res_side
        low_res = np.empty((len(shown), side, side), np.float32)
        scores = np.empty(len(shown), np.float32)
        for i, outcome in enumerate(shown.values()):
            low_res[i] = ABSENT if outcome is None else outcome.low_res_logits
            scores[i] = ABSENT if outcome is None else outcome.score
        masks = self._masks(low_res)
        boxes = boxes_and_areas(masks)[0].astype(np.float32)
        return Result(frame, tuple(shown), masks, probability(scores), scores, boxes, low_res if self._logits else None)

    def _masks(self, low_res: np.ndarray) -> np.ndarray:
        if not self._options.non_overlap_masks or len(low_res) < 2:
            return self._upsampler.masks(low_res)
        logits = self._upsampler.logits(low_res)
        winner = logits.argmax(0)
        return (logits > 0) & (winner == np.arange(len(logits))[:, None, None])

    def _check_open(self) -> None:
        if not self._open:
            raise UserError("this session is closed; open another one")


def object_id(obj: Any) -> int:
    """An object's id. Raises PromptError unless it is a whole number."""
    if not isinstance(obj, (int, np.integer)) or isinstance(obj, bool):
        raise PromptError(f"an object is named by a whole number, not {obj!r}")
    return int(obj)


def whole(value: Any, name: str, low: int, high: int) -> int:
    """A whole number in low..high. Raises PromptError that calls it `name`."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not low <= value <= high:
        raise PromptError(f"{name} {value!r} is outside the video; give a whole number in {low}..{high}")
    return int(value)
