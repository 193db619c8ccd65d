"""SAM 3 checkpoints: official files with `detector.` and `tracker.` names and Hugging Face folders (`facebook/sam3`),
whole or of the image model alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..layers.rotary_vit import RotaryVitConfig
from ..layers.text_towers import ACTIVATIONS, HEAD_WIDTH, TowerConfig
from ..models.sam import SamConfig
from ..models.sam3 import Sam3, Sam3Config
from . import sam3_hugging_face
from .common import (
    MAX_IMAGE_SIZE,
    check_tensors,
    choose_image_size,
    count_modules,
    hugging_face_config,
    load_tensors,
    read,
    reported_as,
    sam_config,
)
from .names import rename
from .sam3_hugging_face import DETR, TEXT, TRUNK, VISION, HiddenSizes

UNUSED = (
    "*.attn.freqs_cis",
    "*.position_ids",
    TEXT + "text_projection*",
    "detector.geometry_encoder.points_*",
    VISION + "convs.3.*",
    VISION + "sam2_convs.3.*",
    "detector.segmentation_head.pixel_decoder.*.2.*",
    "tracker.no_mem_pos_enc",
)
"""Tensors that no computation reads: constants, points in the detector, the half-size level."""

UNUSED_IN_IMAGES = (VISION + "sam2_convs.*",)
"""Tensors of the tracker that files of the image model alone may contain."""

NAMES = (
    (r"^(detector\.backbone\.language_backbone\.encoder\.)positional_embedding$", r"\1position_embedding.weight"),
    (r"^(detector\.backbone\.language_backbone\.encoder\.)(token_|position_)", r"\1text_model.embeddings.\2"),
    (r"\.encoder\.ln_final\.", ".encoder.text_model.final_layer_norm."),
    (r"\.transformer\.resblocks\.(\d+)\.attn\.", r".text_model.encoder.layers.\1.self_attn."),
    (r"\.transformer\.resblocks\.(\d+)\.ln_(\d)\.", r".text_model.encoder.layers.\1.layer_norm\2."),
    (r"\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r".text_model.encoder.layers.\1.mlp.fc1."),
    (r"\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r".text_model.encoder.layers.\1.mlp.fc2."),
    (r"^tracker\.transformer\.encoder\.", "tracker.memory_attention."),
    (r"^tracker\.maskmem_backbone\.", "tracker.memory_encoder."),
    (r"^(tracker\.sam_mask_decoder\..*)\.mlp\.lin1\.", r"\1.mlp.layers.0."),
    (r"^(tracker\.sam_mask_decoder\..*)\.mlp\.lin2\.", r"\1.mlp.layers.1."),
)
"""Patterns from official names to those of the modules, which are shared with other networks; all are applied."""


def load_sam3(path: str | Path, image_size: int | None = None) -> Sam3:
    """Load a checkpoint as a network in eval mode, for images of another size if given. Raises UserError."""
    path = Path(path)
    with reported_as(path, "SAM 3"):
        tensors = read(path, "sam3").tensors
        if sam3_hugging_face.is_layout(tensors):
            tensors = sam3_hugging_face.renamed(tensors)
            hidden = sam3_hugging_face.hidden_sizes(hugging_face_config(path))
        else:
            tensors = renamed(tensors)
            hidden = _hidden_sizes(tensors)
        config = sam3_config(tensors, hidden)
        trunk = config.trunk
        size = choose_image_size(image_size, trunk.image_size, trunk.patch * trunk.window)
        tracker = config.tracker and dataclasses.replace(config.tracker, image_size=size)
        config = dataclasses.replace(config, trunk=dataclasses.replace(trunk, image_size=size), tracker=tracker)
        unused = UNUSED if config.tracker else UNUSED + UNUSED_IN_IMAGES
        with torch.device("meta"), torch.no_grad():  # sizes are checked before memory is allocated for them
            check_tensors(Sam3(config), tensors, path, unused)
    model = Sam3(config)
    load_tensors(model, tensors, path, unused)
    return model.eval()


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return official tensors under the names of the modules; packed projections of the text tower are split."""
    out: dict[str, Tensor] = {}
    alone = not any(name.startswith("detector.") for name in tensors)
    for name, value in tensors.items():
        name = rename("detector." + name if alone else name, NAMES)
        base, packed, kind = name.partition(".self_attn.in_proj_")
        if packed and base.startswith(TEXT):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                out[f"{base}.self_attn.{letter}_proj.{kind}"] = part
        else:
            out[name] = value
    return out


def _hidden_sizes(tensors: Mapping[str, Tensor]) -> HiddenSizes | None:
    """Read from the rotary tables which blocks are global, how large the map is, and the width of a head."""
    blocks = count_modules(tensors, TRUNK + "blocks.")
    names = [f"{TRUNK}blocks.{i}.attn.freqs_cis" for i in range(blocks)]
    if not any(name in tensors for name in names):
        return None
    cells = [len(tensors[name]) for name in names]
    side, patch = math.isqrt(max(cells)), tensors[TRUNK + "patch_embed.proj.weight"].shape[2]
    return HiddenSizes(
        image_size=side * patch,
        global_blocks=tuple(i for i, count in enumerate(cells) if count == side * side),
        head_width=2 * tensors[names[0]].shape[1],
    )


def sam3_config(tensors: Mapping[str, Tensor], hidden: HiddenSizes | None = None) -> Sam3Config:
    """Return the sizes in renamed tensors; those `hidden` from them are the published ones unless given.

    Raises KeyError, ValueError.
    """

    def shape(name: str) -> torch.Size:
        return tensors[name].shape

    trunk = _trunk(tensors, hidden)
    return Sam3Config(
        trunk=trunk,
        text=_text(tensors, hidden or HiddenSizes()),
        width=shape(DETR + "decoder.query_embed.weight")[1],
        heads=shape(DETR + "decoder.boxRPB_embed_x.layers.1.weight")[0],
        hidden=shape(DETR + "encoder.layers.0.linear1.weight")[0],
        geometry_layers=count_modules(tensors, "detector.geometry_encoder.encode."),
        encoder_layers=count_modules(tensors, DETR + "encoder.layers."),
        decoder_layers=count_modules(tensors, DETR + "decoder.layers."),
        queries=shape(DETR + "decoder.query_embed.weight")[0],
        tracker=_tracker(tensors, trunk, hidden or HiddenSizes()),
    )


def _trunk(tensors: Mapping[str, Tensor], hidden: HiddenSizes | None) -> RotaryVitConfig:
    _, rows, width = tensors[TRUNK + "pos_embed"].shape
    blocks = count_modules(tensors, TRUNK + "blocks.")
    published = RotaryVitConfig()
    if hidden is None and (width, blocks) != (published.width, published.blocks):
        raise ValueError(
            f"no config.json and no freqs_cis tensors show the sizes of a trunk of width {width} with {blocks} blocks, "
            f"which is not the published one of {published.width} with {published.blocks}"
        )
    hidden = hidden or HiddenSizes()
    patch, window = tensors[TRUNK + "patch_embed.proj.weight"].shape[2], math.isqrt(rows - 1)
    if hidden.image_size % (patch * window) or not 0 < hidden.image_size <= MAX_IMAGE_SIZE:
        raise ValueError(f"image size {hidden.image_size} is not a multiple of {patch * window} up to {MAX_IMAGE_SIZE}")
    if width % hidden.head_width or hidden.head_width % 4:
        raise ValueError(f"the trunk's width {width} is not made of heads of width {hidden.head_width}")
    if not all(0 <= i < blocks for i in hidden.global_blocks):
        raise ValueError(f"its global blocks {list(hidden.global_blocks)} are not among {blocks} blocks")
    return RotaryVitConfig(
        image_size=hidden.image_size,
        patch=patch,
        width=width,
        hidden=len(tensors[TRUNK + "blocks.0.mlp.fc1.weight"]),
        blocks=blocks,
        global_blocks=hidden.global_blocks,
        window=window,
        head_width=hidden.head_width,
    )


def _text(tensors: Mapping[str, Tensor], hidden: HiddenSizes) -> TowerConfig:
    embeddings, layers = TEXT + "text_model.embeddings.", TEXT + "text_model.encoder.layers."
    vocabulary, width = tensors[embeddings + "token_embedding.weight"].shape
    heads = hidden.text_heads or width // HEAD_WIDTH
    if width % heads:
        raise ValueError(f"the text tower's width {width} is not a multiple of its {heads} heads")
    if hidden.text_activation not in ACTIVATIONS:
        raise ValueError(f"activation {hidden.text_activation!r} of the text tower is none of {', '.join(ACTIVATIONS)}")
    return TowerConfig(
        kind="clip",
        vocabulary=vocabulary,
        positions=len(tensors[embeddings + "position_embedding.weight"]),
        width=width,
        hidden=len(tensors[layers + "0.mlp.fc1.weight"]),
        layers=count_modules(tensors, layers),
        heads=heads,
        activation=hidden.text_activation,
    )


def _tracker(tensors: Mapping[str, Tensor], trunk: RotaryVitConfig, hidden: HiddenSizes) -> SamConfig | None:
    """Return the sizes of the tracker; None in a file of the image model alone."""
    if not any(name.startswith("tracker.") for name in tensors):
        return None
    sizes = sam_config(tensors, "tracker.", trunk=False)
    if (sizes.width // 2) % hidden.decoder_heads:
        raise ValueError(f"the mask decoder's width {sizes.width} does not fit its {hidden.decoder_heads} heads")
    return dataclasses.replace(
        sizes, image_size=trunk.image_size, stride=trunk.patch, decoder_heads=hidden.decoder_heads
    )
