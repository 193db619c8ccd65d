"""SAMWISE checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from runtime.errors import UserError

from ..layers.roberta import TextConfig
from ..models.samwise import CrossModalAdapterConfig, Samwise, SamwiseConfig
from .common import _contents, _count, check, config_from, fill, sam_config


def samwise(path: str | Path) -> Samwise:
    """A SAMWISE checkpoint as a network in eval mode. Raises UserError."""
    tensors, written, arguments = _contents(path)
    # official files always hold a conditional memory encoder, untrained if the training was not told to use it
    if arguments.get("use_cme_head") is False:
        tensors = {k: v for k, v in tensors.items() if not k.startswith("conditional_memory_encoder.")}
    try:
        config = config_from(SamwiseConfig, written) if written else samwise_config(tensors)
        with torch.device("meta"), torch.no_grad():  # sizes are checked before any memory is spent on them
            model = Samwise(config)
            check(model, tensors, path)
            _rehearse(model)
    except (LookupError, ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError) as error:
        detail = f"lacks {error.args[0]}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a SAMWISE checkpoint ({detail})") from None
    model = Samwise(config)
    fill(model, tensors, path)
    return model.eval()


def _rehearse(model: Samwise) -> None:
    """One frame through the network without numbers: sizes that do not divide or fit raise here, as torch says it."""
    c = model.eval().config
    pixels = torch.empty(1, 1, 3, c.sam.image_size, c.sam.image_size)
    clip = model.encode_clip(pixels, torch.zeros(1, 3, dtype=torch.int64))
    embedding, fine = clip.embedding[:, 0], (clip.high_res_0[:, 0], clip.high_res_1[:, 0])
    out = model.decode(model.without_memory(embedding), model.prompt(clip.text), *fine)
    memory = model.remember(embedding, out.low_res_logits)
    model.attend_memory(embedding, memory[:, None], torch.zeros(1, 1, dtype=torch.int64), out.pointer[:, None])
    if c.conditional_hidden:
        model.decide(out.pointer, out.early_token)


def samwise_config(tensors: Mapping[str, Tensor]) -> SamwiseConfig:
    """Sizes of an official SAMWISE from its tensors. Raises KeyError, ValueError."""
    tower = "text_encoder.model.encoder.sentence_encoder."
    vocabulary, width = tensors[tower + "embed_tokens.weight"].shape
    layers = _count(tensors, tower + "layers.")
    text = TextConfig(
        vocabulary=vocabulary,
        positions=tensors[tower + "embed_positions.weight"].shape[0],
        width=width,
        layers=layers,
        hidden=tensors[tower + "layers.0.fc1.weight"].shape[0],
        heads=max(width // 64, 1),
    )  # RoBERTa: 64 per head
    patches = []
    for i in range(3):
        places = tensors.get(f"cmt_adapters.{i}.spatial_pos_embed")
        patches.append(0 if places is None else round(places.shape[3] ** 0.5))
    conditional = tensors.get("conditional_memory_encoder.transformerBlock.linear1.weight")
    return SamwiseConfig(
        sam=sam_config(tensors, "sam."),
        text=text,
        adapter=CrossModalAdapterConfig(
            width=tensors["cmt_adapters.0.proj_vis_down.0.weight"].shape[0], patches=tuple(patches)
        ),
        text_stages=(layers // 3, layers * 2 // 3, layers),
        conditional_hidden=0 if conditional is None else conditional.shape[0],
    )
