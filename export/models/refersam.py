"""ReferSAM: referring image segmentation on SAM (IEEE TCSVT 2024, 10.1109/TCSVT.2024.3524543).

`ReferSam` is the whole network and what every graph is compared with; `stages` cuts it in three. The official code
publishes the model only: size, preprocessing and tokens follow CARIS, the predecessor by the same authors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from runtime.errors import UserError

from ..layers.text_towers import TOWERS, TowerConfig
from ..layers.vit import VitConfig
from ..stage import Stage, stage, tensor
from ..stages.prompt_encoder import PromptEncoder
from ..stages.refersam import FuseStage, ImageStage, TextStage
from ..stages.refersam_adapter import Adapter, AdapterConfig, Grid
from ..stages.refersam_decoder import SamDecoder

IMAGE_SIZE = 448
"""28 ViT cells a side: two windows of 14, and CARIS's input size."""

MAX_TOKENS = 20
"""Length that CARIS cuts sentences to, special tokens included."""

SENTENCES = 16
"""Largest batch of sentences on one picture."""

SUBDIVISION = 32
"""The input size is a multiple of it: the coarsest level of the pyramid has a whole number of cells."""

LARGEST = 2048

VARIANTS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""SAM's encoders by width."""


@dataclass(frozen=True, slots=True)
class ReferSamConfig:
    """Everything that sizes a ReferSAM. The weights fit any `image_size`: position tables are resized."""

    image_size: int = IMAGE_SIZE
    max_tokens: int = MAX_TOKENS
    vit: VitConfig = field(default_factory=VitConfig)
    text: TowerConfig = field(default_factory=TowerConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    decoder_heads: int = 8
    decoder_hidden: int = 2048
    decoder_depth: int = 2
    mask_channels: int = 16

    def __post_init__(self) -> None:
        if self.image_size % SUBDIVISION or not SUBDIVISION <= self.image_size <= LARGEST:
            raise UserError(
                f"image size {self.image_size} is not a multiple of {SUBDIVISION} in "
                f"{SUBDIVISION}..{LARGEST}; try {IMAGE_SIZE}"
            )


class ReferSam(nn.Module):
    def __init__(self, config: ReferSamConfig) -> None:
        super().__init__()
        self.config = config
        width = config.vit.out
        self.text_encoder = TOWERS[config.text.kind](config.text)
        self.vl_adapter = Adapter(config.vit, config.adapter)
        self.sam_prompt_encoder = PromptEncoder(IMAGE_SIZE, width, config.mask_channels)
        self.sam_mask_decoder = SamDecoder(width, config.decoder_heads, config.decoder_hidden, config.decoder_depth)
        self.mask_embedding = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.mask_scaling = nn.Conv2d(1, 1, 1)
        self.sparse_embedding = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width, 1e-6)
        )

    def sentence(self, text_blo: Tensor, count_b: Tensor) -> Tensor:
        """The token that stands for the sentence (B,out): BERT's first, CLIP's last."""
        if self.config.text.kind == "bert":
            return text_blo[:, 0]
        return text_blo[torch.arange(text_blo.shape[0], device=text_blo.device), count_b - 1]

    def forward(self, pixels_b3ii: Tensor, tokens_bl: Tensor, count_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One picture (1,3,I,I) and B sentences (B,L) with their lengths (B), padded on the right.

        Returns logits (B,I/4,I/4), coarse logits (B,I/4,I/4) and predicted IoU (B), nothing folded.
        """
        grid = Grid(self.vl_adapter, pixels_b3ii.shape[-1])
        mask = torch.arange(tokens_bl.shape[1], device=tokens_bl.device) < count_b[:, None]
        vit, pyramid, stem = self.vl_adapter.image(pixels_b3ii, grid)
        return FuseStage(self, grid, folded=False)(vit, pyramid, stem, self.text_encoder(tokens_bl, mask), count_b)


def stages(model: ReferSam, folded: bool = True) -> list[Stage]:
    """`image` once per picture, `text` once per sentence, `fuse` once per pair, batched over sentences."""
    config, grid = model.eval().config, Grid(model.vl_adapter, model.config.image_size)
    image_size, max_tokens = config.image_size, config.max_tokens
    model.vl_adapter.vis_model.freeze(grid.side)
    side, d, w, fine = grid.side, config.vit.width, config.text.width, image_size // 4
    vit, pyramid = tensor("vit", 1, side, side, d), tensor("pyramid", 1, sum(grid.sizes), d)
    stem = tensor("stem", 1, config.adapter.stem, fine, fine)
    bounds = {"objects": (1, SENTENCES), "tokens": (1, max_tokens)}
    sizes = {"objects": 2, "tokens": min(7, max_tokens)}
    pixels, tokens = tensor("pixels", 1, 3, image_size, image_size), tensor("tokens", "tokens", dtype="int64")
    fused = (vit, pyramid, stem, tensor("text", "objects", "tokens", w), tensor("text_count", "objects", dtype="int64"))
    masks = (
        tensor("low_res_logits", "objects", fine, fine),
        tensor("coarse_logits", "objects", fine, fine),
        tensor("iou", "objects"),
    )
    image = stage(
        "image",
        (pixels,),
        (vit, pyramid, stem),
        ImageStage(model, grid),
        lambda s, g: {"pixels": _smooth(image_size, g)},
        bounds,
        sizes,
    )
    text = stage(
        "text",
        (tokens,),
        (tensor("text", "tokens", w),),
        TextStage(model),
        lambda s, g: {"tokens": _tokens(config.text, s["tokens"], g)},
        bounds,
        sizes,
    )

    def pair(s: Mapping[str, int], g: torch.Generator) -> dict[str, Tensor]:
        seen = image.run({"pixels": _smooth(image_size, g)})
        rows = [text.run({"tokens": _tokens(config.text, s["tokens"], g)})["text"] for _ in range(s["objects"])]
        # the first sentence is the shorter one, so that padding is covered
        count = torch.tensor([max(1, s["tokens"] - 2), *[s["tokens"]] * (s["objects"] - 1)])
        return {**seen, "text": torch.stack(rows), "text_count": count}

    return [image, text, stage("fuse", fused, masks, FuseStage(model, grid, folded), pair, bounds, sizes)]


def _smooth(size: int, generator: torch.Generator) -> Tensor:
    """A normalised picture (1,3,size,size): soft blobs with a little grain."""
    coarse = torch.randn(1, 3, 8, 8, generator=generator)
    picture = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return picture + 0.1 * torch.randn(1, 3, size, size, generator=generator)


def _tokens(text: TowerConfig, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, text.vocabulary, (count,), generator=generator)


def load(path: str | Path, image_size: int = IMAGE_SIZE) -> ReferSam:
    """An official checkpoint, vit_b or vit_l, with BERT or CLIP, in eval mode. Raises UserError."""
    from ..refersam_checkpoints import refersam  # it needs the classes above

    return refersam(path, image_size)


def variant(model: ReferSam) -> str:
    """Such as `vit_b-bert-448`."""
    c = model.config
    return f"{VARIANTS.get(c.vit.width, f'vit_{c.vit.width}')}-{c.text.kind}-{c.image_size}"


def settings(model: ReferSam) -> dict[str, Any]:
    """The numbers that the schedule needs; see `docs/architecture.md`, "Settings of a manifest"."""
    c = model.config
    return {
        "resize": {"rule": "square", "max": c.image_size},
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "text": {
            "max_tokens": c.max_tokens,
            "vocabulary": c.text.vocabulary,
            "motion": False,
            "keep_end": c.text.kind == "clip",
        },
    }


@torch.no_grad()
def clip(
    model: ReferSam,
    settings: Mapping[str, Any],
    frames: Sequence[np.ndarray],
    tokens: Sequence[int],
    verbs: Sequence[int] = (),
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each frame as a picture of its own through plain torch, nothing folded, nothing cached: the yardstick.

    Yields masks (1,H,W) bool at source size, low_res_logits (1,s,s), scores (1,).
    """
    size, ids = model.config.image_size, torch.tensor([list(tokens)])
    mean, std = (torch.tensor(settings[k])[:, None, None] for k in ("mean", "std"))
    for frame in frames:
        picture = np.array(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))
        pixels = (torch.from_numpy(picture).permute(2, 0, 1).float() / 255 - mean) / std
        low_res, _, iou = model(pixels[None], ids, torch.tensor([len(tokens)]))
        logits = nn.functional.interpolate(low_res[:, None], frame.shape[:2], mode="bilinear", align_corners=True)
        yield (logits[:, 0] >= 0).numpy(), low_res.numpy(), iou.numpy()


def tiny_test_config(kind: str = "bert", image_size: int = 64) -> ReferSamConfig:
    """A toy network with every part of the real one, for tests: windows that need padding, tables that are resized."""
    return ReferSamConfig(
        image_size=image_size,
        max_tokens=12,
        decoder_hidden=40,
        mask_channels=8,
        vit=VitConfig(width=128, heads=2, windows=(3, 0, 3, 0), hidden=48, positions=8, out=32),
        text=TowerConfig(
            kind=kind,
            vocabulary=100,
            positions=24,
            width=64,
            hidden=40,
            layers=2,
            heads=1,
            activation="gelu" if kind == "bert" else "quick_gelu",
        ),
        adapter=AdapterConfig(
            text_width=64,
            stem=4,
            runs=2,
            extra=1,
            points=4,
            heads=2,
            value_width=16,
            context=3,
            prompts=2,
            prompt_layers=1,
            prompt_heads=8,
        ),
    )
