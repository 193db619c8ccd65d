"""SAM 2 and SAM 2.1: promptable video segmentation (Ravi et al., 2024).

They differ in two tensors: 2.1 gives object pointers their distance in time and marks the memory of frames on which the
object is absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from .sam import Sam, SamConfig


@dataclass(frozen=True, slots=True)
class Sam2Config:
    """Sizes of the network (`sam`) and of its schedule."""

    sam: SamConfig = field(default_factory=SamConfig)
    pointers: int = 16
    """Maximum object pointers (max_obj_ptrs_in_encoder): they reach back one frame less."""


class Sam2(nn.Module):
    """A `Sam` with the sizes of its schedule."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.config = config
        self.sam = Sam(config.sam)
