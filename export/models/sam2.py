"""SAM 2 and SAM 2.1: promptable video segmentation (Ravi et al., 2024).

They differ in two tensors: 2.1 gives object pointers their distance in time and marks the memory of frames on which the
object is absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from ..layers.hiera import HieraConfig
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


def tiny_test_config(image_size: int = 64, pointer_positions: bool = True) -> Sam2Config:
    """Return sizes of a toy network with every part of the real one, for tests."""
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
