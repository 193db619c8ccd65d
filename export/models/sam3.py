"""SAM 3: concept segmentation in images and videos (Carion et al., 2025), a detector and a tracker on one trunk.

Parameters are named as in the official checkpoints (`detector.`, `tracker.`), the text tower as in `transformers`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from ..layers.common import Group
from ..layers.rotary_vit import RotaryVit, RotaryVitConfig
from ..layers.text_towers import ClipText, TowerConfig
from ..stages.concept_neck import neck
from ..stages.detr import Scoring, transformer
from ..stages.geometry_encoder import GeometryEncoder
from ..stages.mask_head import MaskHead
from .sam import Sam, SamConfig


def _text_config() -> TowerConfig:
    return TowerConfig("clip", vocabulary=49408, positions=32, width=1024, hidden=4096, layers=24, heads=16)


def _tracker_config() -> SamConfig:
    return SamConfig(image_size=1008, has_trunk=False, stride=14, pointer_positions=True)


@dataclass(frozen=True, slots=True)
class Sam3Config:
    """Sizes of the network. `tracker` is None for a checkpoint of the image model alone."""

    trunk: RotaryVitConfig = field(default_factory=RotaryVitConfig)
    text: TowerConfig = field(default_factory=_text_config)
    width: int = 256
    heads: int = 8
    hidden: int = 2048
    geometry_layers: int = 3
    encoder_layers: int = 6
    decoder_layers: int = 6
    queries: int = 200
    tracker: SamConfig | None = field(default_factory=_tracker_config)


class Detector(nn.Module):
    """The image model: trunk, necks, text tower, geometry encoder, DETR, mask head."""

    def __init__(self, config: Sam3Config) -> None:
        super().__init__()
        c, side = config, config.trunk.side
        vision = Group(trunk=RotaryVit(c.trunk), convs=neck(c.trunk.width, c.width))
        if c.tracker:
            vision.sam2_convs = neck(c.trunk.width, c.width)
        language = Group(encoder=ClipText(c.text), resizer=nn.Linear(c.text.width, c.width))
        self.backbone = Group(vision_backbone=vision, language_backbone=language)
        self.geometry_encoder = GeometryEncoder(side, c.width, c.heads, c.hidden, c.geometry_layers)
        self.transformer = transformer(side, c.width, c.heads, c.hidden, c.encoder_layers, c.decoder_layers, c.queries)
        self.dot_prod_scoring = Scoring(c.width, c.hidden)
        self.segmentation_head = MaskHead(c.width, c.heads)

    @property
    def trunk(self) -> RotaryVit:
        return self.backbone.vision_backbone.trunk

    @property
    def necks(self) -> Group:
        """`convs` of the detector and `sam2_convs` of the tracker, each finest level first."""
        return self.backbone.vision_backbone


class Sam3(nn.Module):
    """Detector and, unless the checkpoint lacks it, tracker (a `Sam` on the detector's trunk)."""

    def __init__(self, config: Sam3Config) -> None:
        super().__init__()
        self.config = config
        self.detector = Detector(config)
        if config.tracker:
            self.tracker = Sam(config.tracker)

    def detector_levels(self, pixels_bchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the levels of strides 14 (B,N,D), 7 and 3.5 (B,D,h,w) of pixels (B,3,I,I)."""
        vision = self.detector.trunk(pixels_bchw).permute(0, 3, 1, 2)
        fine, middle, coarse = (level(vision) for level in self.detector.necks.convs)
        return coarse.flatten(2).transpose(1, 2), middle, fine

    def tracker_features(self, pixels_bchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tracker's map (B,N,D) and its two fine maps of pixels (B,3,I,I)."""
        vision, decoder = self.detector.trunk(pixels_bchw).permute(0, 3, 1, 2), self.tracker.sam_mask_decoder
        fine, middle, coarse = (level(vision).permute(0, 2, 3, 1) for level in self.detector.necks.sam2_convs)
        high_res = (conv(x).permute(0, 3, 1, 2) for conv, x in ((decoder.conv_s0, fine), (decoder.conv_s1, middle)))
        return coarse.flatten(1, 2), *high_res


def tiny_test_config(tracker: bool = True) -> Sam3Config:
    """Return sizes of a toy network with every part of the real one, for tests."""
    trunk = RotaryVitConfig(
        image_size=112, width=32, hidden=48, blocks=4, global_blocks=(1, 3), window=4, head_width=16
    )
    text = TowerConfig("clip", vocabulary=60, positions=8, width=24, hidden=48, layers=2, heads=2)
    sizes = {"width": 32, "heads": 2, "hidden": 48}
    layers = {"geometry_layers": 1, "encoder_layers": 2, "decoder_layers": 2}
    sam = SamConfig(
        image_size=112,
        has_trunk=False,
        stride=14,
        width=32,
        memory_width=16,
        memory_layers=2,
        memory_hidden=48,
        decoder_hidden=48,
        iou_hidden=24,
        prompt_channels=8,
        mask_channels=(2, 4, 8, 16),
        pointer_positions=True,
    )
    return Sam3Config(trunk, text, **sizes, **layers, queries=10, tracker=sam if tracker else None)
