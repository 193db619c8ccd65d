"""Sizes of the nano network: the modules of SAMWISE, narrow and shallow, for small pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..layers.hiera import HieraConfig
from ..layers.roberta import TextConfig
from ..models.sam import SamConfig
from ..models.samwise import CrossModalAdapterConfig, SamwiseConfig
from .dataset import PIXELS
from .tokenizer import MAX_TOKENS, VOCABULARY


def _config(
    image_size: int,
    blocks: tuple[int, ...],
    windows: tuple[int, ...],
    text_width: int,
    text_hidden: int,
    text_stages: tuple[int, int, int],
    patches: tuple[int, int, int],
) -> SamwiseConfig:
    sam = SamConfig(
        image_size=image_size,
        hiera=HieraConfig(width=48, heads=1, blocks=blocks, windows=windows, global_blocks=(), positions=8),
        width=128,
        memory_width=32,
        memory_layers=2,
        memory_hidden=256,
        decoder_heads=4,
        decoder_hidden=256,
        iou_hidden=64,
        prompt_channels=16,
        mask_channels=(4, 8, 16, 32),
        fuser_blocks=1,
        text_width=text_width,
    )
    text = TextConfig(VOCABULARY, MAX_TOKENS + 2, text_width, text_hidden, layers=text_stages[-1], heads=4)
    adapter = CrossModalAdapterConfig(text_width, heads=text_width // 32, patches=patches)
    return SamwiseConfig(sam, text, adapter, text_stages, conditional_hidden=64, conditional_heads=4)


SIZES = {
    "small": _config(PIXELS, (1, 3, 1, 1), (8, 8, 8, 4), 96, 192, (1, 2, 3), patches=(4, 8, 4)),
    "large": _config(2 * PIXELS, (1, 2, 4, 1), (8, 8, 16, 8), 128, 384, (2, 4, 6), patches=(8, 8, 8)),
}
"""`small`: five million parameters for 128 px, which two CPU cores can train in two hours; the shipped size. `large`:
six million for 256 px, with four times the arithmetic per frame, for a GPU.

HSA patches are chosen so that at stride 32, and in the small network at stride 16 too, one patch is the whole picture:
one attention over all frames sees a motion of any extent. Most of the small trunk lies before the first adapter, where
all sentences of a clip share it.
"""


def to_dict(config: SamwiseConfig) -> dict[str, Any]:
    """Convert to plain data for the 'config' of a checkpoint."""
    return dataclasses.asdict(config)


def from_dict(data: dict[str, Any]) -> SamwiseConfig:
    """Convert the result of `to_dict` back. Raises TypeError for unknown or missing fields."""
    data = dict(data)
    sam = dict(data.pop("sam"))
    hiera = HieraConfig(**_tuples(sam.pop("hiera")))
    return SamwiseConfig(
        sam=SamConfig(hiera=hiera, **_tuples(sam)),
        text=TextConfig(**data.pop("text")),
        adapter=CrossModalAdapterConfig(**_tuples(data.pop("adapter"))),
        **_tuples(data),
    )


def _tuples(data: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
