"""Per-object tracking state (rules of SAM 2's video predictor).

A *conditioning* frame is one that a prompt made; all of them are attended to, past and future, besides the frames just
before in the direction of tracking. A prompt gives a *pending* output, which counts from the next propagation on; a
prompt on a frame that was tracked corrects it and makes no conditioning frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from ..errors import UserError, check_types
from ..imaging.gpu import MaskBits
from .object_memory import Block, DecodedMemory, ObjectMemory
from .prompt_inputs import PointInputs, PromptInputs


@dataclass(frozen=True, slots=True)
class TrackingOptions:
    """Options of tracking; names and defaults are SAM 2's, in brackets where the name is shortened here.

    fill_hole_area           background regions of at most this many low-res pixels are filled, stored and returned so
    non_overlap_masks        a pixel of several objects is kept only by the one with the largest logit
    max_cond_frames_in_attn  conditioning frames attended to from one frame, the nearest ones; None: all
    memory_temporal_stride   [memory_temporal_stride_for_eval] distance of remembered frames, but for the last one
    add_all_frames_to_correct_as_cond  corrections become conditioning frames as well
    Raises UserError for a value out of range.
    """

    fill_hole_area: int = 8
    non_overlap_masks: bool = False
    max_cond_frames_in_attn: int | None = None
    memory_temporal_stride: int = 1
    add_all_frames_to_correct_as_cond: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_cond_frames_in_attn == -1:  # SAM 2's value for all
            object.__setattr__(self, "max_cond_frames_in_attn", None)
        for name, low in (("fill_hole_area", 0), ("memory_temporal_stride", 1), ("max_cond_frames_in_attn", 2)):
            value = getattr(self, name)
            if value is None and name == "max_cond_frames_in_attn":
                continue
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < low:
                raise UserError(f"{name} must be a whole number of {low} or more, not {value!r}")


class TrackingKeywords(TypedDict, total=False):
    """`TrackingOptions` as keywords."""

    fill_hole_area: int
    non_overlap_masks: bool
    max_cond_frames_in_attn: int | None
    memory_temporal_stride: int
    add_all_frames_to_correct_as_cond: bool


@dataclass(slots=True)
class ObjectOutput:
    """Output of the network for one object on one frame.

    low_res_logits  (s, s) float32 as stored: gated by the score, holes filled
    score           presence logit
    obj_ptr         (D,) float32 object pointer
    selected        which of the decoder's four masks it is, -1 for a mask prompt
    ious            (4,) float32 predicted IoU of the four masks, NaN for a mask prompt
    memory_tokens   spatial and pointer tokens that were attended to, (0, 0) without memory
    prompted        whether it comes from a prompt
    raw_logits      (s, s) logits to remember until `block` is written: those before holes are filled, if not prompted
    block           remembered features, None until they are written
    decoded_memory  remembered features that were computed with the mask, until `block` is written
    mask_bits       the mask of `low_res_logits` at source size, until a result has it (`DeviceMasks`)
    given           (H,W) bool mask of a prompt that does not count yet and is not refined (SAM 3); None otherwise
    """

    low_res_logits: np.ndarray
    score: float
    obj_ptr: np.ndarray
    selected: int
    ious: np.ndarray
    memory_tokens: tuple[int, int]
    prompted: bool = False
    raw_logits: np.ndarray | None = None
    block: Block | None = None
    decoded_memory: DecodedMemory | None = None
    mask_bits: MaskBits | None = None
    given: np.ndarray | None = None

    @property
    def iou(self) -> float:
        """Predicted IoU of the mask, NaN for a mask prompt."""
        return float(self.ious[max(self.selected, 0)])


@dataclass(slots=True)
class TrackedObject:
    """One object: its prompts and outputs by frame. `pending_*` are not committed yet; `frames_tracked`: frame ->
    whether it was tracked in reverse."""

    memory: ObjectMemory
    point_inputs: dict[int, PointInputs] = field(default_factory=dict)
    mask_inputs: set[int] = field(default_factory=set)
    cond_outputs: dict[int, ObjectOutput] = field(default_factory=dict)
    non_cond_outputs: dict[int, ObjectOutput] = field(default_factory=dict)
    pending_cond_outputs: dict[int, ObjectOutput] = field(default_factory=dict)
    pending_non_cond_outputs: dict[int, ObjectOutput] = field(default_factory=dict)
    frames_tracked: dict[int, bool] = field(default_factory=dict)

    def set_prompt(self, frame: int, prompt: PromptInputs) -> None:
        """Keep the prompt of a frame: points, or that it is a mask."""
        if isinstance(prompt, PointInputs):
            self.point_inputs[frame] = prompt
            self.mask_inputs.discard(frame)
        else:
            self.mask_inputs.add(frame)
            self.point_inputs.pop(frame, None)

    def store(self, outputs: dict[int, ObjectOutput], frame: int, output: ObjectOutput) -> None:
        """Put an output into one of the stores; the block of the output that it replaces is freed."""
        old = outputs.get(frame)
        if old is not None and old is not output:
            self.free_block(old)
        outputs[frame] = output  # a frame that is there keeps its place in the order

    def drop(self, outputs: dict[int, ObjectOutput], frame: int) -> None:
        """Remove an output from one of the stores, if it is there."""
        output = outputs.pop(frame, None)
        if output is not None:
            self.free_block(output)

    def committed(self, frame: int) -> ObjectOutput | None:
        """Return the committed output of a frame."""
        return self.cond_outputs.get(frame) or self.non_cond_outputs.get(frame)

    def pending_or_committed(self, frame: int, conditioning: bool) -> ObjectOutput | None:
        """Return the output to show where a prompt (a conditioning one or a correction) changes the frame."""
        pending = self.pending_cond_outputs if conditioning else self.pending_non_cond_outputs
        return pending.get(frame) or self.committed(frame)

    def free_block(self, output: ObjectOutput) -> None:
        """Free the block of an output."""
        if output.block is not None:
            self.memory.free(output.block)
            output.block = None
