"""SAM 3's detector on nano's trunk, with nano's SAM 2 modules as the tracker.

The trunk is a Hiera, whose maps are packed into one (`layers.packing`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from ..layers.common import Group
from ..layers.packing import Levels, PackedTrunkConfig, pack
from ..layers.text_towers import ClipText, TowerConfig
from ..stages.detr import Scoring, transformer
from ..stages.geometry_encoder import GeometryEncoder
from ..stages.mask_head import MaskHead
from .sam import Sam, SamConfig


@dataclass(frozen=True, slots=True)
class NanoConceptsConfig:
    """Sizes of the network; the names are those of `Sam3Config`. `roi`: side of the features of an exemplar."""

    tracker: SamConfig = field(default_factory=SamConfig)
    text: TowerConfig = field(default_factory=lambda: TowerConfig("clip", 1024, 16, 96, 192, 2, 4))
    padding: int = 1
    width: int = 96
    heads: int = 4
    hidden: int = 192
    geometry_layers: int = 1
    encoder_layers: int = 2
    decoder_layers: int = 3
    queries: int = 36
    roi: int = 3

    @property
    def trunk(self) -> PackedTrunkConfig:
        c = self.tracker
        return PackedTrunkConfig(c.image_size, c.stride, c.hiera, c.width)


class ConceptDetector(nn.Module):
    """Levels, text tower, geometry encoder, DETR and mask head, named as in SAM 3."""

    def __init__(self, config: NanoConceptsConfig) -> None:
        super().__init__()
        c, side = config, config.trunk.side
        self.levels = Levels(c.trunk, c.width)
        language = Group(encoder=ClipText(c.text), resizer=nn.Linear(c.text.width, c.width))
        self.backbone = Group(language_backbone=language)
        self.geometry_encoder = GeometryEncoder(side, c.width, c.heads, c.hidden, c.geometry_layers, c.roi)
        self.transformer = transformer(side, c.width, c.heads, c.hidden, c.encoder_layers, c.decoder_layers, c.queries)
        self.dot_prod_scoring = Scoring(c.width, c.hidden)
        self.segmentation_head = MaskHead(c.width, c.heads)


class NanoConcepts(nn.Module):
    """Detector and tracker; the trunk is the tracker's."""

    def __init__(self, config: NanoConceptsConfig) -> None:
        super().__init__()
        self.config = config
        self.detector = ConceptDetector(config)
        self.tracker = Sam(config.tracker)

    def detector_levels(self, pixels_bchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the levels of strides 16 (B,N,D), 8 and 4 (B,D,h,w) of pixels (B,3,I,I)."""
        trunk = self.encode_image(pixels_bchw)
        return self.detector.levels.coarse(trunk), *self.detector.levels.fine(trunk)

    def tracker_features(self, pixels_bchw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tracker's map (B,N,D) and its two fine maps of pixels (B,3,I,I)."""
        return self.tracker.features(self.trunk_maps(pixels_bchw))

    def trunk_maps(self, pixels_bchw: Tensor) -> list[Tensor]:
        """Return the outputs of the four trunk stages (B,h,w,C)."""
        trunk, maps = self.tracker.trunk, []
        x = trunk.start(pixels_bchw)
        for stage in range(4):
            x = trunk.run(stage, x)
            maps.append(x)
        return maps

    def encode_image(self, pixels_bchw: Tensor) -> Tensor:
        """Return the packed map (B,N,W) of pixels (B,3,I,I)."""
        maps = self.trunk_maps(pixels_bchw)
        embedding = self.tracker.neck.embedding(maps[2], maps[3]).flatten(1, 2)
        return pack(*maps[:3], embedding)
