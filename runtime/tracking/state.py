"""What is known of one tracked object, and which of it a frame looks back at.

The rules are those of SAM 2's video predictor. A *conditioning* frame is one that a prompt made; all of them are looked
at, past and future, besides the frames just before in the direction of tracking. A prompt gives a *new* result, which
counts from the next propagation on; a prompt on a frame that was tracked corrects it and makes no conditioning frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import UserError
from .object_memory import Bank, Page


@dataclass(frozen=True, slots=True)
class Options:
    """How to track; names and defaults are the reference's, in brackets where it shortens here.

    fill_hole_area           background regions of at most so many low-res pixels are filled, stored and returned so
    non_overlap_masks        of several objects at a pixel only the one with the largest logit keeps it
    max_cond_frames_in_attn  conditioning frames looked at from one frame, the nearest ones; None: all
    memory_temporal_stride   [memory_temporal_stride_for_eval] remembered frames lie so far apart, but for the last one
    add_all_frames_to_correct_as_cond  corrections become conditioning frames as well
    Raises UserError for a value out of range.
    """

    fill_hole_area: int = 8
    non_overlap_masks: bool = False
    max_cond_frames_in_attn: int | None = None
    memory_temporal_stride: int = 1
    add_all_frames_to_correct_as_cond: bool = False

    def __post_init__(self) -> None:
        if self.max_cond_frames_in_attn == -1:  # the reference's word for all
            object.__setattr__(self, "max_cond_frames_in_attn", None)
        for name, low in (("fill_hole_area", 0), ("memory_temporal_stride", 1), ("max_cond_frames_in_attn", 2)):
            value = getattr(self, name)
            if value is None and name == "max_cond_frames_in_attn":
                continue
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < low:
                raise UserError(f"{name} must be a whole number of {low} or more, not {value!r}")


@dataclass(slots=True)
class Outcome:
    """What was computed for one object on one frame.

    low_res_logits  (s, s) float32 as stored: gated by the score, holes filled
    score           presence logit
    pointer         (D,) float32
    selected        which of the decoder's four masks it is, -1 for a mask prompt
    ious            (4,) float32 of the four masks, NaN for a mask prompt
    memory_tokens   spatial and pointer tokens that were attended to, (0, 0) without memory
    page            remembered map, None until it is written
    prompted        whether it comes from a prompt
    """

    low_res_logits: np.ndarray
    score: float
    pointer: np.ndarray
    selected: int
    ious: np.ndarray
    memory_tokens: tuple[int, int]
    page: Page | None = None
    prompted: bool = False


@dataclass(frozen=True, slots=True)
class Clicks:
    """Points of one object on one frame in network pixels: `xy` (K,2) float32, `labels` (K,) 0, 1; 2, 3 for a box."""

    xy: np.ndarray
    labels: np.ndarray

    def __add__(self, other: Clicks) -> Clicks:
        return Clicks(np.concatenate((self.xy, other.xy)), np.concatenate((self.labels, other.labels)))


@dataclass(slots=True)
class Track:
    """One object: its prompts and outcomes by frame. `new_*` are not committed; `tracked`: frame -> in reverse."""

    bank: Bank
    clicks: dict[int, Clicks] = field(default_factory=dict)
    masks: set[int] = field(default_factory=set)
    conditioning: dict[int, Outcome] = field(default_factory=dict)
    others: dict[int, Outcome] = field(default_factory=dict)
    new_conditioning: dict[int, Outcome] = field(default_factory=dict)
    new_others: dict[int, Outcome] = field(default_factory=dict)
    tracked: dict[int, bool] = field(default_factory=dict)

    def put(self, store: dict[int, Outcome], frame: int, outcome: Outcome) -> None:
        """File an outcome; the page of the one it replaces is given back."""
        old = store.get(frame)
        if old is not None and old is not outcome:
            self.release(old)
        store[frame] = outcome  # a frame that is there keeps its place in the order

    def drop(self, store: dict[int, Outcome], frame: int) -> None:
        """Forget an outcome, if there is one."""
        outcome = store.pop(frame, None)
        if outcome is not None:
            self.release(outcome)

    def stored(self, frame: int) -> Outcome | None:
        """The committed outcome of a frame."""
        return self.conditioning.get(frame) or self.others.get(frame)

    def shown(self, frame: int, conditioning: bool) -> Outcome | None:
        """What is shown of this object when a prompt (a conditioning one or a correction) changes the frame."""
        new = self.new_conditioning if conditioning else self.new_others
        return new.get(frame) or self.stored(frame)

    def release(self, outcome: Outcome) -> None:
        """Give back the page of an outcome."""
        if outcome.page is not None:
            self.bank.give(outcome.page)
            outcome.page = None
