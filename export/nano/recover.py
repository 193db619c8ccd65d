"""SAM 2 modules of nano from the graphs of its bundle.

The checkpoint that `engines/nano` was exported from is not in the repository, its graphs are. Where the export has
merged linear layers, one of the equivalent pairs is taken. `python -m export.nano.train_concepts` starts from the
result.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from runtime.bundle.manifest import Manifest
from runtime.errors import BundleError

from ..graph_weights import load_weights
from ..layers.fold import FoldedAttention
from ..layers.hiera import Hiera, HieraAttention
from ..layers.positions import pairs_to_halves
from ..models.sam import Sam
from ..models.samwise import Samwise
from ..networks import sam2
from ..stages.hiera import FirstHiera
from ..stages.memory_attention import FoldedMemoryLayer, MemoryLayer
from .config import SIZES


@torch.no_grad()
def recover_sam(folder: Path) -> Sam:
    """Return nano's trunk, neck, prompt encoder, decoder and memory, in eval mode. Raises BundleError."""
    manifest = Manifest.load(folder)
    model = Samwise(SIZES["small"])
    if manifest.provenance.get("config", {}).get("sam", {}).get("width") != model.config.sam.width:
        raise BundleError(f"{folder}: no bundle of nano's size")
    for p in model.parameters():
        p.normal_()
    sam, modules = model.sam, {}
    for stage in sam2.stages(model):
        if stage.name not in manifest.stages:
            raise BundleError(f"{folder}: stage {stage.name} is missing; give a bundle of samwise+sam2")
        load_weights(stage, folder / manifest.stages[stage.name].files["default"])
        modules[stage.name] = stage.module
    _set_trunk(sam, modules["image_encoder"])
    _set_memory(sam, modules["memory_attention"])
    sam.no_obj_ptr.copy_(modules["prompt_decoder"].no_pointer)
    return sam.eval()


def _set_trunk(sam: Sam, stage: nn.Module) -> None:
    first: FirstHiera = stage.first
    stages = [first.stage_0, first.stage_1, stage.stage_2.blocks, stage.stage_3.blocks]
    for block, folded in zip(sam.trunk.blocks, (b for blocks in stages for b in blocks), strict=True):
        _unfold_attention(block.attn, folded.attn)
    _set_positions(sam.trunk, first.positions)
    decoder = sam.sam_mask_decoder
    for level, conv, merged in ((0, decoder.conv_s0, first.fine), (1, decoder.conv_s1, stage.neck.fine)):
        _set_product(sam.neck.lateral(level), conv, merged)
    sam.no_mem_embed.copy_(stage.neck.no_memory)


def _unfold_attention(attention: HieraAttention, folded: FoldedAttention) -> None:
    parts = folded.q, folded.k, folded.v
    none = torch.zeros_like(folded.q.bias)
    attention.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
    attention.qkv.bias.copy_(torch.cat((folded.q.bias, none, none)))
    attention.proj.weight.copy_(folded.out.weight)
    attention.proj.bias.copy_(folded.out.bias)


def _set_positions(trunk: Hiera, positions_hwc: Tensor) -> None:
    """Solve for the coarse and the window map whose sum is a position map."""
    tables, side = (trunk.pos_embed, trunk.pos_embed_window), positions_hwc.shape[0]
    columns = []
    for table in tables:
        for i in range(table[0, 0].numel()):
            for t in tables:
                t.zero_()
            table[0, 0].flatten()[i] = 1
            columns.append(trunk.positions(side)[..., 0].flatten())
    solution = torch.linalg.lstsq(
        torch.stack(columns, 1).double(), positions_hwc.flatten(0, 1).double(), driver="gelsd"
    ).solution.float()
    for table, part in zip(tables, solution.split([t[0, 0].numel() for t in tables]), strict=True):
        table[0].copy_(part.T.unflatten(1, table.shape[2:]))


def _set_product(first: nn.Module, second: nn.Module, merged: nn.Linear) -> None:
    """Set two pointwise layers to the product `merged`: the first has its rows, the second passes them on."""
    out = len(merged.weight)
    for p in (first.weight, first.bias, second.weight, second.bias):
        p.zero_()
    first.weight[:out].copy_(merged.weight.reshape(first.weight[:out].shape))
    first.bias[:out].copy_(merged.bias)
    second.weight[:, :out].copy_(torch.eye(out).reshape(second.weight[:, :out].shape))


def _set_memory(sam: Sam, stage: nn.Module) -> None:
    sam.maskmem_tpos_enc.copy_(stage.ages.reshape(sam.maskmem_tpos_enc.shape))
    for layer, folded in zip(sam.memory_attention.layers, stage.layers, strict=True):
        _unfold_memory(layer, folded)


def _unfold_memory(layer: MemoryLayer, folded: FoldedMemoryLayer) -> None:
    attention, cross = layer.self_attn, layer.cross_attn_image
    order = pairs_to_halves(attention.q_proj.out_features)
    pairs = (
        (attention.q_proj, folded.self_q), (attention.k_proj, folded.self_k), (cross.q_proj, folded.q),
        (cross.k_proj, folded.k),
    )  # fmt: skip
    for to, found in pairs:
        to.weight[order], to.bias[order] = found.weight, found.bias
    _set_product_wide(cross.v_proj, cross.out_proj, folded.out)


def _set_product_wide(first: nn.Linear, second: nn.Linear, merged: nn.Linear) -> None:
    """Set two layers to the product `merged`: the first passes its inputs on, the second has the columns."""
    width = merged.in_features
    for p in (first.weight, first.bias, second.weight):
        p.zero_()
    first.weight[:width].copy_(torch.eye(width))
    second.weight[:, :width].copy_(merged.weight)
    second.bias.copy_(merged.bias)
