"""Sizes of toy networks with every part of the real ones."""

from __future__ import annotations

from dataclasses import replace

from export.layers.hiera import HieraConfig
from export.layers.roberta import TextConfig
from export.layers.text_towers import TowerConfig
from export.layers.vit import VitConfig
from export.models.refersam import ReferSamConfig
from export.models.sam import SamConfig
from export.models.sam2 import Sam2Config
from export.models.samwise import CrossModalAdapterConfig, SamwiseConfig
from export.stages.refersam_adapter import ReferSamAdapterConfig


def _sam(image_size: int, last_window: int) -> SamConfig:
    windows = (4, 2, 6, last_window)
    hiera = HieraConfig(width=8, heads=1, blocks=(1, 2, 2, 1), windows=windows, global_blocks=(4,), positions=3)
    sam = SamConfig(image_size, hiera, width=32, memory_width=16, memory_layers=2, memory_hidden=48)
    sizes = replace(sam, decoder_heads=4, decoder_hidden=48, iou_hidden=24, prompt_channels=8)
    return replace(sizes, mask_channels=(2, 4, 8, 16))


def toy_sam2_config(image_size: int = 64, pointer_positions: bool = True) -> Sam2Config:
    return Sam2Config(replace(_sam(image_size, 3), pointer_positions=pointer_positions))


def toy_samwise_config(image_size: int = 64, motion: bool = False) -> SamwiseConfig:
    sam = replace(_sam(image_size, 2), text_width=24, motion=motion)
    text = TextConfig(vocabulary=100, positions=34, width=24, hidden=48, layers=3, heads=2)
    adapter = CrossModalAdapterConfig(width=16, heads=2, patches=(4, 2, 1))
    config = SamwiseConfig(sam, text, adapter, text_stages=(1, 2, 3), window=4, pointers=7)
    return replace(config, conditional_hidden=16, conditional_heads=4)


def toy_refersam_config(kind: str = "bert", image_size: int = 64) -> ReferSamConfig:
    """Windows are padded and tables resized."""
    vit = VitConfig(width=128, heads=2, windows=(3, 0, 3, 0), hidden=48, positions=8, out=32)
    text = TowerConfig(kind, vocabulary=100, positions=24, width=64, hidden=40, layers=2, heads=1)
    text = replace(text, activation="gelu" if kind == "bert" else "quick_gelu")
    adapter = ReferSamAdapterConfig(text_width=64, stem=4, runs=2, extra=1, points=4, heads=2, value_width=16)
    adapter = replace(adapter, context=3, prompts=2, prompt_layers=1, prompt_heads=8)
    return ReferSamConfig(image_size, 12, vit, text, adapter, decoder_hidden=40, mask_channels=8)
