"""ReferSAM checkpoints: sizes and the kinds of ViT and text tower follow from the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..layers.text_towers import HEAD_WIDTH, TowerConfig
from ..layers.vit import VitConfig
from ..models.refersam import IMAGE_SIZE, ReferSam, ReferSamConfig
from ..stages.refersam_adapter import ReferSamAdapterConfig
from .common import check_tensors, count_modules, load_tensors, read, reported_as

UNUSED = ("text_encoder.pooler.*", "text_encoder.*position_ids", "text_encoder.*token_type_ids")
"""Patterns of tensors that some releases of the text towers contain and no computation reads."""


def load_refersam(path: str | Path, image_size: int = IMAGE_SIZE, activation: str | None = None) -> ReferSam:
    """Load a checkpoint as a network in eval mode, for images of `image_size`. Raises UserError."""
    return build(read(path, "refersam").tensors, path, image_size, activation)


def build(tensors: Mapping[str, Tensor], path: str | Path, image_size: int, activation: str | None = None) -> ReferSam:
    """Build the network with these tensors; `path` names them in errors."""
    tensors = {renamed(k): v for k, v in tensors.items()}
    with reported_as(path, "ReferSAM"):
        config = replace(config_of(tensors, activation), image_size=image_size)
        with torch.device("meta"), torch.no_grad():  # sizes are checked before memory is allocated for them
            check_tensors(ReferSam(config), tensors, path, UNUSED)
    model = ReferSam(config)
    load_tensors(model, tensors, path, UNUSED)
    return model.eval().requires_grad_(False)


def config_of(tensors: Mapping[str, Tensor], activation: str | None = None) -> ReferSamConfig:
    """Read the sizes from renamed tensors of a checkpoint. Raises KeyError.

    The tensors of a CLIP tower do not show its `activation`; None means quick_gelu, OpenAI's.
    """
    return ReferSamConfig(
        vit=_vit(tensors),
        text=_text(tensors, activation),
        adapter=_adapter(tensors),
        decoder_hidden=len(tensors["sam_mask_decoder.transformer.layers.0.mlp.layers.0.bias"]),
        decoder_depth=count_modules(tensors, "sam_mask_decoder.transformer.layers."),
        mask_channels=len(tensors["sam_prompt_encoder.mask_downscaling.3.bias"]),
    )


def _vit(tensors: Mapping[str, Tensor]) -> VitConfig:
    root = "vl_adapter.vis_model."
    positions, width = tensors[root + "pos_embed"].shape[1::2]
    rows = [len(tensors[f"{root}blocks.{i}.attn.rel_pos_h"]) for i in range(count_modules(tensors, root + "blocks."))]
    # the table of a global block covers the whole grid of SAM's training
    windows = tuple(0 if n == 2 * positions - 1 else (n + 1) // 2 for n in rows)
    return VitConfig(
        width=width,
        heads=width // tensors[root + "blocks.0.attn.rel_pos_h"].shape[1],
        windows=windows,
        hidden=len(tensors[root + "blocks.0.mlp.lin1.bias"]),
        positions=positions,
        patch=tensors[root + "patch_embed.proj.weight"].shape[2],
        out=len(tensors[root + "neck.0.weight"]),
    )


def _text(tensors: Mapping[str, Tensor], activation: str | None) -> TowerConfig:
    if "text_encoder.embeddings.word_embeddings.weight" in tensors:
        kind, table, positions = "bert", "embeddings.word_embeddings", "embeddings.position_embeddings"
        layers, hidden = "encoder.layer.", "encoder.layer.0.intermediate.dense.bias"
    else:
        kind, table = "clip", "text_model.embeddings.token_embedding"
        positions = "text_model.embeddings.position_embedding"
        layers, hidden = "text_model.encoder.layers.", "text_model.encoder.layers.0.mlp.fc1.bias"
    vocabulary, width = tensors[f"text_encoder.{table}.weight"].shape
    return TowerConfig(
        kind=kind,
        vocabulary=vocabulary,
        positions=len(tensors[f"text_encoder.{positions}.weight"]),
        width=width,
        hidden=len(tensors[f"text_encoder.{hidden}"]),
        layers=count_modules(tensors, "text_encoder." + layers),
        heads=max(1, width // HEAD_WIDTH),
        activation=activation or ("gelu" if kind == "bert" else "quick_gelu"),
    )


def _adapter(tensors: Mapping[str, Tensor]) -> ReferSamAdapterConfig:
    root, first = "vl_adapter.", "vl_adapter.interactions.0."
    levels = len(tensors[root + "level_embed"])
    heads = len(tensors[first + "vl_extractor.l2v_cross_attn.level_weights.bias"]) // levels
    runs = count_modules(tensors, root + "interactions.")
    return ReferSamAdapterConfig(
        text_width=tensors[root + "lang_prompts.weight"].shape[1],
        runs=runs,
        stem=len(tensors[root + "spm.stem.0.weight"]),
        extra=count_modules(tensors, f"{root}interactions.{runs - 1}.extra_extractors."),
        points=len(tensors[first + "extractor.attn.attention_weights.bias"]) // heads,
        heads=heads,
        value_width=len(tensors[first + "extractor.attn.value_proj.bias"]),
        context=len(tensors[root + "lang_prompts.weight"]),
        prompts=len(tensors[root + "sparse_prompts.weight"]),
        prompt_layers=count_modules(tensors, root + "prompt_blocks."),
        prompt_heads=len(tensors[root + "prompt_blocks.0.p2v_cross_attn.level_weights.bias"]) // levels,
    )


def renamed(name: str) -> str:
    """Remove `module.`, rename the decoder's MLP as in SAM 2, and restore the prefix that new CLIP releases dropped."""
    name = name.removeprefix("module.")
    if name.startswith("sam_mask_decoder."):
        return name.replace(".mlp.lin1.", ".mlp.layers.0.").replace(".mlp.lin2.", ".mlp.layers.1.")
    head, _, tail = name.partition("text_encoder.")
    if not head and tail.startswith(
        ("embeddings.token_embedding", "embeddings.position_embedding.", "encoder.layers.", "final_layer_norm")
    ):
        return f"text_encoder.text_model.{tail}"
    return name
