"""Request and response types of the SAM 2 mask decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .memory_selection import MemorySelection
from .object_memory import DecodedMemory
from .prompt_inputs import NO_POINTS, PointInputs

if TYPE_CHECKING:
    from ..imaging.gpu import DeviceMasks, MaskBits


@dataclass(eq=False)
class ImageFeatures:
    """Feature maps of one frame on the device, each (1, ...), or of P frames, each (P, ...)."""

    embedding: Any
    embedding_no_memory: Any
    high_res_0: Any
    high_res_1: Any


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """Input of the mask decoder for one object.

    points             points with the padding point at their end; None: no point at all, not even padding
    multimask          whether to take the best of masks 1..3 rather than mask 0
    mask_logits        (s, s) float32 logits as dense prompt
    memory             input of memory attention; None: no memory
    skip_no_mem_embed  without memory: leave the no-memory embedding out (object pointer of a mask prompt)
    output_logits      (s, s) logits of a mask prompt: the output is this mask, not the decoder's
    picture            row of the feature maps, where they are those of several frames
    masks              what makes masks of the logits on the device; None: they are made on the host
    """

    points: PointInputs | None
    multimask: bool
    mask_logits: np.ndarray | None = None
    memory: MemorySelection | None = None
    skip_no_mem_embed: bool = False
    output_logits: np.ndarray | None = None
    picture: int = 0
    masks: DeviceMasks | None = None

    @property
    def memory_shape(self) -> tuple[int, int]:
        """Numbers of maps and pointers that are attended to."""
        return (0, 0) if self.memory is None else self.memory.shape

    @property
    def is_tracking_only(self) -> bool:
        """Absence of any prompt on this frame."""
        return self.points is NO_POINTS and self.mask_logits is None


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """Output of the mask decoder for one request, on the host; see `prompt_decoder` in `docs/architecture.md`.
    `mask_bits`: the mask of the logits, or four masks with `all_logits`; None: not made on the device."""

    low_res_logits: np.ndarray
    all_logits: np.ndarray | None
    ious: np.ndarray
    selected: int
    score: float
    obj_ptr: np.ndarray
    memory_tokens: tuple[int, int]
    decoded_memory: DecodedMemory | None = None
    mask_bits: MaskBits | None = None
