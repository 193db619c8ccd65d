"""SAMWISE checkpoints: official files, and those written by the training here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..layers.hiera import STRIDES
from ..layers.roberta import HEAD_WIDTH, TextConfig
from ..models.samwise import CrossModalAdapterConfig, Samwise, SamwiseConfig
from .common import (
    check_tensors,
    choose_image_size,
    config_from,
    count_modules,
    load_tensors,
    read,
    reported_as,
    sam_config,
)


def load_samwise(path: str | Path, image_size: int | None = None) -> Samwise:
    """Load a checkpoint as a network in eval mode, for images of another size if given. Raises UserError."""
    tensors, written, arguments = read(path, "samwise")
    # official files always contain a conditional memory encoder, which is untrained if the training did not use it
    if arguments.get("use_cme_head") is False:
        tensors = {k: v for k, v in tensors.items() if not k.startswith("conditional_memory_encoder.")}
    with reported_as(path, "SAMWISE"):
        config = config_from(SamwiseConfig, written) if written else samwise_config(tensors)
        patches = zip(STRIDES[1:], config.adapter.patches, strict=True)
        multiple = math.lcm(STRIDES[-1], *(stride * patch for stride, patch in patches if patch))
        size = choose_image_size(image_size, config.sam.image_size, multiple)
        config = replace(config, sam=replace(config.sam, image_size=size))
        with torch.device("meta"), torch.no_grad():  # sizes are checked before memory is allocated for them
            model = Samwise(config)
            check_tensors(model, tensors, path)
            _dry_run(model)
    model = Samwise(config)
    load_tensors(model, tensors, path)
    return model.eval()


def _dry_run(model: Samwise) -> None:
    """Run one frame on the meta device: torch raises for sizes that do not divide or fit."""
    c = model.eval().config
    pixels = torch.empty(1, 1, 3, c.sam.image_size, c.sam.image_size)
    clip = model.encode_clip(pixels, torch.zeros(1, 3, dtype=torch.int64))
    embedding, fine = clip.embedding[:, 0], (clip.high_res_0[:, 0], clip.high_res_1[:, 0])
    out = model.decode(model.add_no_mem_embed(embedding), model.prompt(clip.text), *fine)
    memory = model.encode_memory(embedding, out.low_res_logits)
    model.attend_memory(embedding, memory[:, None], torch.zeros(1, 1, dtype=torch.int64), out.pointer[:, None])
    if c.conditional_hidden:
        model.cme_logits(out.pointer, out.early_token)


def samwise_config(tensors: Mapping[str, Tensor]) -> SamwiseConfig:
    """Read the sizes of an official SAMWISE from its tensors. Raises KeyError, ValueError."""
    tower = "text_encoder.model.encoder.sentence_encoder."
    vocabulary, width = tensors[tower + "embed_tokens.weight"].shape
    layers = count_modules(tensors, tower + "layers.")
    text = TextConfig(
        vocabulary=vocabulary,
        positions=tensors[tower + "embed_positions.weight"].shape[0],
        width=width,
        layers=layers,
        hidden=tensors[tower + "layers.0.fc1.weight"].shape[0],
        heads=max(width // HEAD_WIDTH, 1),
    )
    positions = (tensors.get(f"cmt_adapters.{i}.spatial_pos_embed") for i in range(3))
    first, second, third = (0 if table is None else round(table.shape[3] ** 0.5) for table in positions)
    adapter_width = tensors["cmt_adapters.0.proj_vis_down.0.weight"].shape[0]
    conditional = tensors.get("conditional_memory_encoder.transformerBlock.linear1.weight")
    return SamwiseConfig(
        sam=sam_config(tensors, "sam."),
        text=text,
        adapter=CrossModalAdapterConfig(adapter_width, patches=(first, second, third)),
        text_stages=(layers // 3, layers * 2 // 3, layers),
        conditional_hidden=0 if conditional is None else conditional.shape[0],
    )
