"""Sizes of the nano network: the modules of SAMWISE, narrow and shallow, for small images."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from ..layers.hiera import HieraConfig
from ..layers.roberta import TextConfig
from ..models.sam import SamConfig
from ..models.samwise import CrossModalAdapterConfig, SamwiseConfig
from .dataset import PIXELS
from .tokenizer import MAX_TOKENS, VOCABULARY

_HIERA = HieraConfig(width=48, heads=1, blocks=(1, 3, 1, 1), windows=(8, 8, 8, 4), global_blocks=(), positions=8)
_SAM = SamConfig(
    image_size=PIXELS,
    hiera=_HIERA,
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
    text_width=96,
)
_TEXT = TextConfig(VOCABULARY, MAX_TOKENS + 2, width=96, hidden=192, layers=3, heads=4)
_ADAPTER = CrossModalAdapterConfig(width=96, heads=3, patches=(4, 8, 4))
_SMALL = SamwiseConfig(_SAM, _TEXT, _ADAPTER, text_stages=(1, 2, 3), conditional_hidden=64, conditional_heads=4)
_LARGE_HIERA = replace(_HIERA, blocks=(1, 2, 4, 1), windows=(8, 8, 16, 8))
_LARGE = replace(
    _SMALL,
    sam=replace(_SAM, image_size=2 * PIXELS, hiera=_LARGE_HIERA, text_width=128),
    text=replace(_TEXT, width=128, hidden=384, layers=6),
    adapter=CrossModalAdapterConfig(width=128, heads=4, patches=(8, 8, 8)),
    text_stages=(2, 4, 6),
)
SIZES = {"small": _SMALL, "large": _LARGE}
"""`small`: five million parameters for 128 px, which two CPU cores can train in two hours; the shipped size. `large`:
six million for 256 px, with four times the arithmetic per frame, for a GPU.

HSA patches are chosen so that at stride 32, and in the small network at stride 16 too, one patch is the whole image:
one attention over all frames sees a motion of any extent. Most of the small trunk lies before the first adapter, where
all sentences of a clip share it.
"""


def to_dict(config: SamwiseConfig) -> dict[str, Any]:
    """Convert to plain data for the 'config' of a checkpoint."""
    return asdict(config)


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
