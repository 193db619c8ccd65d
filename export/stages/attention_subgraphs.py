"""Subgraphs before and after the attention kernels of `kernels/`: exact algebra on the weights of the whole stages.

The kernel of memory attention takes unrotated queries and the memory as it is stored; it projects and rotates the keys
and returns the mean of the 64-wide memory, so value and output projection follow as one matrix. The kernel of
hierarchical selective attention computes everything from adding positions to adding the residual.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..layers.fold import FoldedAttention
from .cross_modal_adapter import AdapterStage
from .memory_attention import FoldedMemoryLayer, MemoryAttention, MemoryLayer


class PreAttention(nn.Module):
    """Self-attention of a layer and queries of its cross-attention: channels in pairs, unrotated."""

    def __init__(self, layer: MemoryLayer, attention: MemoryAttention) -> None:
        super().__init__()
        self.folded = FoldedMemoryLayer(layer, False)
        self.q = layer.cross_attn_image.q_proj
        self.register_buffer("cos", attention.cos)
        self.register_buffer("sin", attention.sin)

    def self_attention(self, x_bnd: Tensor) -> Tensor:
        return self.folded.self_attention(x_bnd, self.cos, self.sin)

    def project_queries(self, x_bnd: Tensor) -> tuple[Tensor, Tensor]:
        """Return residual and queries (B,N,D)."""
        return x_bnd, self.q(self.folded.norm2(x_bnd))


class PostAttention(nn.Module):
    """Rest of a layer after its cross-attention: residual (B,N,D), attended memory (B,N,M) -> (B,N,D)."""

    def __init__(self, layer: MemoryLayer) -> None:
        super().__init__()
        self.folded = FoldedMemoryLayer(layer, False)

    def forward(self, residual: Tensor, attended: Tensor) -> Tensor:
        layer = self.folded
        x = residual + layer.out(attended)
        return x + layer.linear2(layer.linear1(layer.norm3(x)).relu())


class FirstSubgraph(nn.Module):
    """embedding (E,N,D), map_index (B), maskmem_tpos_index (B,S) -> residual, queries (B,N,D), ages (B,S) int32."""

    def __init__(self, attention: MemoryAttention) -> None:
        super().__init__()
        self.pre = PreAttention(attention.layers[0], attention)
        self.register_buffer("grid", attention.grid)

    def forward(self, embedding: Tensor, map_index: Tensor, maskmem_tpos_index: Tensor) -> tuple[Tensor, ...]:
        # the first self-attention does not depend on the memory and runs once per map, as in the whole stage
        x = self.pre.self_attention(embedding + self.grid)[map_index]
        return *self.pre.project_queries(x), maskmem_tpos_index.to(torch.int32)


class MiddleSubgraph(nn.Module):
    """End of one layer and beginning of the next: residual, attended -> residual, queries."""

    def __init__(self, attention: MemoryAttention, index: int) -> None:
        super().__init__()
        self.post = PostAttention(attention.layers[index - 1])
        self.pre = PreAttention(attention.layers[index], attention)

    def forward(self, residual: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        return self.pre.project_queries(self.pre.self_attention(self.post(residual, attended)))


class LastSubgraph(nn.Module):
    """End of the last layer: residual, attended -> conditioned (B,N,D)."""

    def __init__(self, attention: MemoryAttention) -> None:
        super().__init__()
        self.post, self.norm = PostAttention(attention.layers[-1]), attention.norm

    def forward(self, residual: Tensor, attended: Tensor) -> tuple[Tensor]:
        return (self.norm(self.post(residual, attended)),)


def memory_constants(attention: MemoryAttention, ages: Tensor) -> dict[str, np.ndarray]:
    """Return the constant arguments of the kernel, named as in `kernels/reference.py`; those of layer i end in `_i`."""
    constants = {"position": attention.memory_grid, "temporal": ages.detach().flatten(1)}
    constants |= {"cosine": attention.cos, "sine": attention.sin}
    for i, layer in enumerate(attention.layers):
        key = layer.cross_attn_image.k_proj
        constants |= {f"key_weight_{i}": key.weight, f"key_bias_{i}": key.bias}
    return _arrays(constants)


class AdapterDown(nn.Module):
    """vision (T,h,w,V) -> narrow (T,h,w,C), the input of hierarchical selective attention."""

    def __init__(self, stage: AdapterStage) -> None:
        super().__init__()
        self.down = stage.down

    def forward(self, vision: Tensor) -> tuple[Tensor]:
        return (self.down(vision).relu(),)


class AdapterUp(nn.Module):
    """vision, text, narrow (T,h,w,C), selected (narrow with its attention added) -> vision and text, adapted."""

    def __init__(self, stage: AdapterStage) -> None:
        super().__init__()
        self.text_down, self.text_up, self.up = stage.text_down, stage.text_up, stage.up
        self.v2t, self.t2v = stage.v2t, stage.t2v

    def forward(self, vision: Tensor, text: Tensor, narrow: Tensor, selected: Tensor) -> tuple[Tensor, Tensor]:
        return self.fuse(vision, text, selected, narrow.mean(0))

    def fuse(self, vision: Tensor, text: Tensor, selected: Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
        """`average` (h,w,C): mean of the narrow maps of the clip."""
        t = self.text_down(text)[None]
        pixels = selected.flatten(0, 2)[None]
        y = (pixels * self.v2t(pixels, t))[0].view_as(selected)
        t = t * self.t2v(t, average.flatten(0, 1)[None])
        return vision + self.up(y).relu(), text + self.text_up(t[0])


class AdapterStepUp(AdapterUp):
    """The same for one frame (T=1) behind kept maps (K,h,w,C)."""

    def forward(  # type: ignore[override]
        self, vision: Tensor, text: Tensor, narrow: Tensor, selected: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.fuse(vision, text, selected, torch.cat((kept, narrow)).mean(0))


def window_constants(stage: AdapterStage) -> dict[str, np.ndarray]:
    """Return the constant arguments of the kernel, named as in `kernels/reference.py`."""
    attention: FoldedAttention = stage.attention
    zero = torch.zeros(len(attention.k.weight))  # folded keys and values have no bias
    weight = torch.cat((attention.q.weight, attention.k.weight, attention.v.weight))
    bias = torch.cat((attention.q.bias, zero, zero))
    constants = {"position": stage.positions, "qkv_weight": weight, "qkv_bias": bias}
    constants |= {"norm_weight": stage.norm.weight, "norm_bias": stage.norm.bias}
    return _arrays(constants | {"out_weight": attention.out.weight, "out_bias": attention.out.bias})


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor.detach().float().numpy()) for name, tensor in tensors.items()}
