"""SAM 2 checkpoints: official files and Hugging Face folders, of SAM 2 and 2.1, distinguished by their tensors.

Hugging Face's tensors (`facebook/sam2.1-hiera-*`) are renamed to the official names; their sizes come from the
`config.json` beside them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..layers.hiera import STRIDES, HieraConfig
from ..models.sam import SamConfig
from ..models.sam2 import Sam2, Sam2Config
from .common import (
    check_tensors,
    choose_image_size,
    config_from,
    hugging_face_config,
    load_tensors,
    read,
    reported_as,
    sam_config,
)
from .names import rename

UNUSED = ("no_mem_pos_enc",)
"""Tensors of every checkpoint that no computation reads."""

PROMPTS, MASKS = "sam_prompt_encoder", "memory_encoder.mask_downsampler.encoder"


def _every_third(prefix: str, offset: int) -> Callable[[re.Match[str]], str]:
    """Return the name of a layer that is one of three (convolution, norm, activation) in official names."""
    return lambda match: f"{prefix}.{3 * int(match[1]) + offset}."


NAMES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^shared_image_embedding\.positional_embedding$", f"{PROMPTS}.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"^prompt_encoder\.mask_embed\.conv(\d)\.", _every_third(f"{PROMPTS}.mask_downscaling", -3)),
    (r"^prompt_encoder\.mask_embed\.layer_norm(\d)\.", _every_third(f"{PROMPTS}.mask_downscaling", -2)),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.upscale_conv(\d)\.", _every_third("sam_mask_decoder.output_upscaling", -3)),
    (r"^mask_decoder\.upscale_layer_norm\.", "sam_mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"^memory_encoder\.mask_downsampler\.layers\.(\d+)\.conv\.", _every_third(MASKS, 0)),
    (r"^memory_encoder\.mask_downsampler\.layers\.(\d+)\.layer_norm\.", _every_third(MASKS, 1)),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"^memory_encoder\.memory_fuser\.layers\.(\d+)\.scale$", r"memory_encoder.fuser.layers.\1.gamma"),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"\.layer_norm(\d?)\.", r".norm\1."),
    (r"\.o_proj\.", ".out_proj."),
)
"""Patterns from Hugging Face's names to official ones; all are applied, in this order."""


def load_sam2(path: str | Path, image_size: int | None = None) -> Sam2:
    """Load a checkpoint as a network in eval mode, for images of another size if given. Raises UserError."""
    path = Path(path)
    with reported_as(path, "SAM 2"):
        tensors, written, _ = read(path, "sam2")
        if any(name.startswith("vision_encoder.") for name in tensors):
            tensors = renamed(tensors)
        config = config_from(Sam2Config, written) if written else _config(path, tensors)
        size = choose_image_size(image_size, config.sam.image_size, STRIDES[-1])
        config = dataclasses.replace(config, sam=dataclasses.replace(config.sam, image_size=size))
        with torch.device("meta"), torch.no_grad():  # sizes are checked before memory is allocated for them
            check_tensors(Sam2(config).sam, tensors, path, UNUSED)
    model = Sam2(config)
    load_tensors(model.sam, tensors, path, UNUSED)
    return model.eval()


def _config(path: Path, tensors: Mapping[str, Tensor]) -> Sam2Config:
    """Return the sizes in Hugging Face's config.json beside the tensors, else those of a published network.

    Raises UserError, KeyError, ValueError.
    """
    config = hugging_face_config(path)
    if "vision_config" not in config:
        return Sam2Config(sam_config(tensors))
    return Sam2Config(config_from(SamConfig, dataclasses.asdict(_sam_config(config, tensors))))  # checks every number


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Hugging Face's tensors under their official names."""
    depths = _depths(tensors)
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name == "prompt_encoder.shared_embedding.positional_embedding":
            name = "shared_image_embedding.positional_embedding"  # the same numbers, stored twice
        if name == "prompt_encoder.point_embed.weight":
            out |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(value)}
            continue
        if name.startswith("memory_encoder.mask_downsampler.final_conv."):
            last = 3 * depths["memory_encoder.mask_downsampler."]
            out[f"memory_encoder.mask_downsampler.encoder.{last}.{name.rpartition('.')[2]}"] = value
            continue
        out[rename(_layers(name, depths), NAMES)] = value
    return out


def _depths(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the inner `layers` of every prefix."""
    depths: dict[str, int] = {}
    for name in tensors:
        prefix, found, rest = name.rpartition("layers.")
        if found and rest.split(".")[0].isdigit():
            depths[prefix] = max(depths.get(prefix, 0), int(rest.split(".")[0]) + 1)
    return depths


def _layers(name: str, depths: Mapping[str, int]) -> str:
    """Number the layers of an MLP as the official names do; Hugging Face names the first and last separately."""
    if match := re.match(r"(.*\.)proj_(in|out)\.(.*)", name):
        prefix, which, rest = match.groups()
        return f"{prefix}layers.{0 if which == 'in' else depths.get(prefix, 0) + 1}.{rest}"
    if match := re.match(r"(.*(?:_mlps\.\d+|_head|pointer_proj)\.)layers\.(\d+)\.(.*)", name):
        return f"{match[1]}layers.{int(match[2]) + 1}.{match[3]}"
    return name


def _sam_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SamConfig:
    """Read sizes from `config.json` and tensors. Raises KeyError for the config of another network."""
    vision, decoder = config["vision_config"], config["mask_decoder_config"]
    trunk = vision["backbone_config"]
    hiera = HieraConfig(
        width=trunk["hidden_size"],
        heads=trunk.get("num_attention_heads", 1),
        blocks=tuple(trunk["blocks_per_stage"]),
        windows=tuple(trunk["window_size_per_stage"]),
        global_blocks=tuple(trunk["global_attention_blocks"]),
        positions=trunk["window_positional_embedding_background_size"][0],
    )
    if config.get("memory_attention_num_attention_heads", 1) != 1:
        raise ValueError("memory attention with more than one head")
    return dataclasses.replace(
        sam_config(tensors, hiera=hiera),
        image_size=config.get("image_size", 1024),
        decoder_heads=decoder.get("num_attention_heads", 8),
    )
