"""ReferSAM for export: checkpoint, stages, settings and parity clip."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.refersam import load_refersam as load
from ..layers.text_towers import TowerConfig
from ..models.refersam import ReferSam
from ..stage import Sampler, Stage, stage, tensor
from ..stages.refersam import FuseStage, ImageStage, TextStage
from ..stages.refersam_adapter import Grid
from ..verify.references import refersam_clip as clip
from .base import IMAGENET

__all__ = ["clip", "load", "settings", "stages", "variant"]

MAX_SENTENCES = 16
"""Maximum sentences on one image in one call."""

VARIANTS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Names of SAM's encoders by width."""


def variant(model: ReferSam) -> str:
    """Return the name of encoder, text tower and image size, for instance `vit_b-bert-448`."""
    c = model.config
    return f"{VARIANTS.get(c.vit.width, f'vit_{c.vit.width}')}-{c.text.kind}-{c.image_size}"


def settings(model: ReferSam) -> dict[str, Any]:
    """Return the settings of ReferSAM."""
    c = model.config
    text = {
        "max_tokens": c.max_tokens,
        "vocabulary": c.text.vocabulary,
        "motion": False,
        "keep_end": c.text.kind == "clip",
    }
    return {"refersam": {"resize": {"rule": "square", "max": c.image_size}, **IMAGENET, "text": text}}


def stages(model: ReferSam, folded: bool = True) -> list[Stage]:
    """Return `image` (once per image), `text` (once per sentence) and `fuse` (batched over sentences)."""
    c, grid = model.eval().config, Grid(model.vl_adapter, model.config.image_size)
    model.vl_adapter.vis_model.freeze(grid.side)
    size, fine = c.image_size, c.image_size // 4
    factory = partial(
        stage,
        bounds={"objects": (1, MAX_SENTENCES), "tokens": (1, c.max_tokens)},
        sizes={"objects": 2, "tokens": min(7, c.max_tokens)},
        typical={"objects": 1, "tokens": 16},
        graph_safe=True,
    )
    encoded = (
        tensor("vit", 1, grid.side, grid.side, c.vit.width),
        tensor("pyramid", 1, sum(grid.sizes), c.vit.width),
        tensor("stem", 1, c.adapter.stem, fine, fine),
    )
    pixels, tokens = tensor("pixels", 1, 3, size, size, keep_fp32=True), tensor("tokens", "tokens", dtype="int64")
    image_attributes: dict[str, Any] = {"role": "image_encoder", "bf16_ok": True, "stride": c.vit.patch}
    image = factory("image", (pixels,), encoded, ImageStage(model, grid), _images(size), **image_attributes)
    embedded = (tensor("text", "tokens", c.text.width),)
    text = factory("text", (tokens,), embedded, TextStage(model), _sentences(c.text), role="text_encoder")
    inputs = (
        *encoded,
        tensor("text", "objects", "tokens", c.text.width),
        tensor("text_count", "objects", dtype="int64"),
    )
    outputs = (
        *(tensor(name, "objects", fine, fine, keep_fp32=True) for name in ("low_res_logits", "coarse_logits")),
        tensor("iou", "objects", keep_fp32=True),
    )
    module, pairs = FuseStage(model, grid, folded), _pairs(image, text)
    fuse = factory("fuse", inputs, outputs, module, pairs, role="fusion", stride=c.vit.patch)
    return [image, text, fuse]


def _images(size: int) -> Sampler:
    """Return a sampler of normalised images (1,3,size,size): smooth blobs with a little grain."""

    def sample(sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        coarse = torch.randn(1, 3, 8, 8, generator=generator)
        image = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
        return {"pixels": image + 0.1 * torch.randn(1, 3, size, size, generator=generator)}

    return sample


def _sentences(text: TowerConfig) -> Sampler:
    """Return a sampler of token ids."""
    return lambda sizes, generator: {
        "tokens": torch.randint(1, text.vocabulary, (sizes["tokens"],), generator=generator)
    }


def _pairs(image: Stage, text: Stage) -> Sampler:
    """Return a sampler of the inputs of `fuse`: outputs of the other stages."""

    def sample(sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        encoded = image.run(image.sampler(sizes, generator))
        rows = [text.run(text.sampler(sizes, generator))["text"] for _ in range(sizes["objects"])]
        # the first sentence is shorter, so that padding is covered
        count = torch.tensor([max(1, sizes["tokens"] - 2), *[sizes["tokens"]] * (sizes["objects"] - 1)])
        return {**encoded, "text": torch.stack(rows), "text_count": count}

    return sample
