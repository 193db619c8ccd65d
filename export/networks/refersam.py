"""ReferSAM for export: checkpoint, stages, settings and parity clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoints.refersam import load_refersam
from ..layers.text_towers import TowerConfig
from ..models.refersam import IMAGE_SIZE, ReferSam
from ..stage import Stage, stage, tensor
from ..stages.refersam import FuseStage, ImageStage, TextStage
from ..stages.refersam_adapter import Grid

SENTENCES = 16
"""Largest batch of sentences on one picture."""


VARIANTS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""SAM's encoders by width."""


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
    pixels = tensor("pixels", 1, 3, image_size, image_size, keep_fp32=True)
    tokens, typical = tensor("tokens", "tokens", dtype="int64"), {"objects": 1, "tokens": 16}
    fused = (vit, pyramid, stem, tensor("text", "objects", "tokens", w), tensor("text_count", "objects", dtype="int64"))
    masks = (
        tensor("low_res_logits", "objects", fine, fine, keep_fp32=True),
        tensor("coarse_logits", "objects", fine, fine, keep_fp32=True),
        tensor("iou", "objects", keep_fp32=True),
    )
    image = stage(
        "image",
        (pixels,),
        (vit, pyramid, stem),
        ImageStage(model, grid),
        lambda s, g: {"pixels": _smooth(image_size, g)},
        bounds,
        sizes,
        role="image_encoder",
        bf16_ok=True,
        stride=config.vit.patch,
    )
    text = stage(
        "text",
        (tokens,),
        (tensor("text", "tokens", w),),
        TextStage(model),
        lambda s, g: {"tokens": _tokens(config.text, s["tokens"], g)},
        bounds,
        sizes,
        role="text_encoder",
        typical=typical,
    )

    def pair(s: Mapping[str, int], g: torch.Generator) -> dict[str, Tensor]:
        seen = image.run({"pixels": _smooth(image_size, g)})
        rows = [text.run({"tokens": _tokens(config.text, s["tokens"], g)})["text"] for _ in range(s["objects"])]
        # the first sentence is the shorter one, so that padding is covered
        count = torch.tensor([max(1, s["tokens"] - 2), *[s["tokens"]] * (s["objects"] - 1)])
        return {**seen, "text": torch.stack(rows), "text_count": count}

    fuse = stage(
        "fuse",
        fused,
        masks,
        FuseStage(model, grid, folded),
        pair,
        bounds,
        sizes,
        role="fusion",
        typical=typical,
        stride=config.vit.patch,
    )
    return [image, text, fuse]


def _smooth(size: int, generator: torch.Generator) -> Tensor:
    """A normalised picture (1,3,size,size): soft blobs with a little grain."""
    coarse = torch.randn(1, 3, 8, 8, generator=generator)
    picture = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return picture + 0.1 * torch.randn(1, 3, size, size, generator=generator)


def _tokens(text: TowerConfig, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, text.vocabulary, (count,), generator=generator)


def load(path: str | Path, image_size: int = IMAGE_SIZE) -> ReferSam:
    """An official checkpoint, vit_b or vit_l, with BERT or CLIP, in eval mode. Raises UserError."""
    return load_refersam(path, image_size)


def variant(model: ReferSam) -> str:
    """Such as `vit_b-bert-448`."""
    c = model.config
    return f"{VARIANTS.get(c.vit.width, f'vit_{c.vit.width}')}-{c.text.kind}-{c.image_size}"


def settings(model: ReferSam) -> dict[str, Any]:
    """Settings by network; see `docs/architecture.md`, "Settings of a manifest"."""
    c = model.config
    own = {
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
    return {"refersam": own}


@torch.no_grad()
def clip(
    model: ReferSam,
    networks: Mapping[str, Any],
    frames: Sequence[np.ndarray],
    tokens: Sequence[int],
    verbs: Sequence[int] = (),
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each frame as a picture of its own through plain torch, nothing folded, nothing cached: the yardstick.

    Yields masks (1,H,W) bool at source size, low_res_logits (1,s,s), scores (1,).
    """
    settings = networks["refersam"]
    size, ids = model.config.image_size, torch.tensor([list(tokens)])
    mean, std = (torch.tensor(settings[k])[:, None, None] for k in ("mean", "std"))
    for frame in frames:
        picture = np.array(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))
        pixels = (torch.from_numpy(picture).permute(2, 0, 1).float() / 255 - mean) / std
        low_res, _, iou = model(pixels[None], ids, torch.tensor([len(tokens)]))
        logits = nn.functional.interpolate(low_res[:, None], frame.shape[:2], mode="bilinear", align_corners=True)
        yield (logits[:, 0] >= 0).numpy(), low_res.numpy(), iou.numpy()
