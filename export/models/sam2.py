"""SAM 2 and SAM 2.1: promptable video segmentation (Ravi et al., 2024), cut into stages.

The two differ in two tensors only: 2.1 gives object pointers their distance in time, and marks the memory of frames on
which the object is absent. `stages` and `settings` take any network that holds a `sam`, a SAMWISE trained for clicks, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ..layers.hiera import HieraConfig
from ..stages.sam import Sam, SamConfig


@dataclass(frozen=True, slots=True)
class Sam2Config:
    """`sam` sizes the network; the rest is how it is scheduled."""

    sam: SamConfig = field(default_factory=SamConfig)
    pointers: int = 16
    """Object pointers reach back one frame less than this."""


class Sam2(nn.Module):
    """A `Sam` with its schedule's numbers."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.config = config
        self.sam = Sam(config.sam)


def tiny_test_config(image_size: int = 64, pointer_positions: bool = True) -> Sam2Config:
    """A toy network with every part of the real one, for tests: builds in milliseconds."""
    hiera = HieraConfig(width=8, heads=1, blocks=(1, 2, 2, 1), windows=(4, 2, 6, 3), global_blocks=(4,), positions=3)
    return Sam2Config(
        SamConfig(
            image_size=image_size,
            hiera=hiera,
            width=32,
            memory_width=16,
            memory_layers=2,
            memory_hidden=48,
            decoder_heads=4,
            decoder_hidden=48,
            iou_hidden=24,
            prompt_channels=8,
            mask_channels=(2, 4, 8, 16),
            pointer_positions=pointer_positions,
        )
    )
