"""Names and sizes of SAM 3 in Hugging Face's layout: transformers' Sam3Model and Sam3VideoModel (`facebook/sam3`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import sam2
from .names import rename

VISION = "detector.backbone.vision_backbone."
TRUNK = VISION + "trunk."
LANGUAGE = "detector.backbone.language_backbone."
TEXT = LANGUAGE + "encoder."
DETR = "detector.transformer."

NAMES = (
    (r"^vision_encoder\.backbone\.embeddings\.position_embeddings$", TRUNK + "pos_embed"),
    (r"^vision_encoder\.backbone\.embeddings\.patch_embeddings\.projection\.", TRUNK + "patch_embed.proj."),
    (r"^vision_encoder\.backbone\.layer_norm\.", TRUNK + "ln_pre."),
    (r"^vision_encoder\.backbone\.layers\.(\d+)\.attention\.o_proj\.", TRUNK + r"blocks.\1.attn.proj."),
    (r"^vision_encoder\.backbone\.layers\.(\d+)\.attention\.", TRUNK + r"blocks.\1.attn."),
    (r"^vision_encoder\.backbone\.layers\.(\d+)\.layer_norm", TRUNK + r"blocks.\1.norm"),
    (r"^vision_encoder\.backbone\.layers\.", TRUNK + "blocks."),
    (r"^vision_encoder\.neck\.fpn_layers\.", VISION + "convs."),
    (r"^tracker_neck\.fpn_layers\.", VISION + "sam2_convs."),
    (r"convs\.0\.scale_layers\.0\.", "convs.0.dconv_2x2_0."),
    (r"convs\.0\.scale_layers\.2\.", "convs.0.dconv_2x2_1."),
    (r"convs\.1\.scale_layers\.0\.", "convs.1.dconv_2x2."),
    (r"(convs\.\d+)\.proj1\.", r"\1.conv_1x1."),
    (r"(convs\.\d+)\.proj2\.", r"\1.conv_3x3."),
    (r"^text_encoder\.", TEXT),
    (r"^text_projection\.", LANGUAGE + "resizer."),
    (r"^geometry_encoder\.layers\.", "geometry_encoder.encode."),
    (r"^geometry_encoder\.vision_layer_norm\.", "geometry_encoder.img_pre_norm."),
    (r"^geometry_encoder\.prompt_layer_norm\.", "geometry_encoder.norm."),
    (r"^geometry_encoder\.output_layer_norm\.", "geometry_encoder.encode_norm."),
    (r"^geometry_encoder\.", "detector.geometry_encoder."),
    (r"^detr_encoder\.", DETR + "encoder."),
    (r"^detr_decoder\.", DETR + "decoder."),
    (r"\.self_attn_layer_norm\.", ".norm2."),
    (r"\.text_cross_attn_layer_norm\.", ".catext_norm."),
    (r"\.vision_cross_attn_layer_norm\.", ".norm1."),
    (r"\.mlp_layer_norm\.", ".norm3."),
    (r"\.text_cross_attn\.", ".ca_text."),
    (r"\.vision_cross_attn\.", ".cross_attn."),
    (r"(\.(?:encode|encoder\.layers)\.\d+)\.cross_attn\.", r"\1.cross_attn_image."),
    (r"^(detector\.(?:geometry_encoder\.encode|transformer\.\w+\.layers)\.\d+)\.layer_norm(\d)\.", r"\1.norm\2."),
    (r"^(detector\.(?:geometry_encoder\.encode|transformer\.\w+\.layers)\.\d+)\.mlp\.fc(\d)\.", r"\1.linear\2."),
    (r"\.decoder\.output_layer_norm\.", ".decoder.norm."),
    (r"\.decoder\.box_head\.", ".decoder.bbox_embed."),
    (r"\.decoder\.presence_head\.", ".decoder.presence_token_head."),
    (r"\.decoder\.presence_layer_norm\.", ".decoder.presence_token_out_norm."),
    (r"\.decoder\.box_rpb_embed_", ".decoder.boxRPB_embed_"),
    (r"^mask_decoder\.mask_embedder\.", "mask_decoder.mask_predictor.mask_embed."),
    (r"^mask_decoder\.(instance|semantic)_projection\.", r"mask_decoder.\1_seg_head."),
    (r"^mask_decoder\.prompt_cross_attn\.", "mask_decoder.cross_attend_prompt."),
    (r"^mask_decoder\.prompt_cross_attn_norm\.", "mask_decoder.cross_attn_norm."),
    (r"^mask_decoder\.", "detector.segmentation_head."),
    (r"^dot_product_scoring\.text_mlp_out_norm\.", "dot_product_scoring.prompt_mlp.out_norm."),
    (r"^dot_product_scoring\.text_", "dot_product_scoring.prompt_"),
    (r"^dot_product_scoring\.query_proj\.", "dot_product_scoring.hs_proj."),
    (r"^dot_product_scoring\.", "detector.dot_prod_scoring."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.layer1\.", ".layers.0."),
    (r"\.layer2\.", ".layers.1."),
    (r"\.layer3\.", ".layers.2."),
)
"""Patterns from names of the detector to those of the modules; all are applied, in this order."""

TRACKER = re.compile(r"(tracker_model\.)+")
"""Prefix of the tracker, which transformers 5 doubles when it saves a loaded checkpoint."""

PROJECTION = re.compile(r"(.+)\.([qkv])_proj\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class HiddenSizes:
    """Sizes that no parameter shows. `text_heads` None: heads of the usual width."""

    image_size: int = 1008
    global_blocks: tuple[int, ...] = (7, 15, 23, 31)
    head_width: int = 64
    text_heads: int | None = None
    text_activation: str = "gelu"
    decoder_heads: int = 8


def is_layout(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether these are Hugging Face's names, with or without `detector_model.`."""
    return any(name.startswith(("detector_model.", "detr_decoder.")) for name in tensors)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of the modules, with packed projections and a row of a class token."""
    tracker = {TRACKER.sub("", name): value for name, value in tensors.items() if TRACKER.match(name)}
    out = {f"tracker.{name}": value for name, value in sam2.renamed(tracker).items()}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if TRACKER.match(name):
            continue
        name = rename(name.removeprefix("detector_model."), NAMES)
        if (match := PROJECTION.fullmatch(name)) and not name.startswith(TEXT):
            base, letter, kind = match.groups()
            name = f"{base}.qkv.{kind}" if base.startswith(TRUNK) else f"{base}.in_proj_{kind}"
            packed.setdefault(name, {})[letter] = value
        else:
            out[name] = value
    out |= {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in packed.items()}
    if TRUNK + "pos_embed" in out:
        table = out[TRUNK + "pos_embed"]
        out[TRUNK + "pos_embed"] = torch.cat((torch.zeros_like(table[:, :1]), table), 1)
    return out


def hidden_sizes(config: Mapping[str, Any]) -> HiddenSizes | None:
    """Read the config.json of a video or an image model; None if there is none. Raises KeyError, ValueError."""
    if not config:
        return None
    detector = config.get("detector_config", config)
    trunk, text = detector["vision_config"]["backbone_config"], detector.get("text_config") or {}
    decoder = (config.get("tracker_config") or {}).get("mask_decoder_config") or {}
    published = HiddenSizes()
    blocks = trunk.get("global_attn_indexes")
    return HiddenSizes(
        image_size=int(trunk.get("image_size", published.image_size)),
        global_blocks=published.global_blocks if blocks is None else tuple(int(i) for i in blocks),
        head_width=int(trunk.get("hidden_size", 1024)) // int(trunk.get("num_attention_heads", 16)),
        text_heads=text.get("num_attention_heads"),
        text_activation=text.get("hidden_act", published.text_activation),
        decoder_heads=int(decoder.get("num_attention_heads", published.decoder_heads)),
    )
