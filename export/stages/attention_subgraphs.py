"""What stands around a kernel: stages cut where `kernels/` takes over. Exact algebra, the same weights.

The kernel of memory attention takes unrotated queries and the memory as it lies in the ring; it projects and rotates
keys itself and returns the mean of the 64-wide memory, so value and output projection follow as one matrix.
The kernel of hierarchical selective attention does everything from the positions to the residual.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..layers.fold import FoldedAttention
from .cross_modal_adapter import AdapterStage
from .memory_attention import FoldedMemoryLayer, MemoryAttention, MemoryLayer


class Queries(nn.Module):
    """A layer up to its cross-attention: (B,N,D) -> residual (B,N,D), queries (B,N,D), channels in pairs, unrotated."""

    def __init__(self, layer: MemoryLayer, attention: MemoryAttention) -> None:
        super().__init__()
        self.folded = FoldedMemoryLayer(layer, False)
        self.q = layer.cross_attn_image.q_proj
        self.register_buffer("cos", attention.cos)
        self.register_buffer("sin", attention.sin)

    def own(self, x_bnd: Tensor) -> Tensor:
        return self.folded.own(x_bnd, self.cos, self.sin)

    def asked(self, x_bnd: Tensor) -> tuple[Tensor, Tensor]:
        return x_bnd, self.q(self.folded.norm2(x_bnd))


class Answer(nn.Module):
    """A layer after its cross-attention: residual (B,N,D), attended memory (B,N,M) -> (B,N,D)."""

    def __init__(self, layer: MemoryLayer) -> None:
        super().__init__()
        self.folded = FoldedMemoryLayer(layer, False)

    def forward(self, residual: Tensor, attended: Tensor) -> Tensor:
        layer = self.folded
        x = residual + layer.out(attended)
        return x + layer.linear2(layer.linear1(layer.norm3(x)).relu())


class FirstPart(nn.Module):
    """embedding (E,N,D), map_index (B), memory_age (B,S) -> residual, queries (B,N,D), ages (B,S) int32."""

    def __init__(self, attention: MemoryAttention) -> None:
        super().__init__()
        self.queries = Queries(attention.layers[0], attention)
        self.register_buffer("grid", attention.grid)

    def forward(self, embedding: Tensor, map_index: Tensor, memory_age: Tensor) -> tuple[Tensor, ...]:
        # as in the whole stage: the first self-attention sees nothing of the memory and runs once per map
        x = self.queries.own(embedding + self.grid)[map_index]
        return *self.queries.asked(x), memory_age.to(torch.int32)


class NextPart(nn.Module):
    """The end of one layer and the beginning of the next: residual, attended -> residual, queries."""

    def __init__(self, attention: MemoryAttention, index: int) -> None:
        super().__init__()
        self.answer = Answer(attention.layers[index - 1])
        self.queries = Queries(attention.layers[index], attention)

    def forward(self, residual: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        return self.queries.asked(self.queries.own(self.answer(residual, attended)))


class LastPart(nn.Module):
    """The end of the last layer: residual, attended -> conditioned (B,N,D)."""

    def __init__(self, attention: MemoryAttention) -> None:
        super().__init__()
        self.answer, self.norm = Answer(attention.layers[-1]), attention.norm

    def forward(self, residual: Tensor, attended: Tensor) -> tuple[Tensor]:
        return (self.norm(self.answer(residual, attended)),)


def memory_constants(attention: MemoryAttention, ages: Tensor) -> dict[str, np.ndarray]:
    """Arguments of the kernel that do not change, named as in `kernels/reference.py`; those of layer i end in `_i`."""
    found = {
        "position": attention.memory_grid,
        "temporal": ages.detach().flatten(1),
        "cosine": attention.cos,
        "sine": attention.sin,
    }
    for i, layer in enumerate(attention.layers):
        key = layer.cross_attn_image.k_proj
        found |= {f"key_weight_{i}": key.weight, f"key_bias_{i}": key.bias}
    return _arrays(found)


class AdapterDown(nn.Module):
    """vision (T,h,w,V) -> narrow (T,h,w,C): what hierarchical selective attention looks at."""

    def __init__(self, stage: AdapterStage) -> None:
        super().__init__()
        self.down = stage.down

    def forward(self, vision: Tensor) -> tuple[Tensor]:
        return (self.down(vision).relu(),)


class AdapterUp(nn.Module):
    """vision, text, narrow and selected (T,h,w,C), narrow with its attention added -> both, adapted."""

    def __init__(self, stage: AdapterStage) -> None:
        super().__init__()
        self.text_down, self.text_up, self.up = stage.text_down, stage.text_up, stage.up
        self.v2t, self.t2v = stage.v2t, stage.t2v

    def forward(self, vision: Tensor, text: Tensor, narrow: Tensor, selected: Tensor) -> tuple[Tensor, Tensor]:
        t = self.text_down(text)[None]
        pixels = selected.flatten(0, 2)[None]
        y = (pixels * self.v2t(pixels, t))[0].view_as(narrow)
        t = t * self.t2v(t, narrow.mean(0).flatten(0, 1)[None])
        return vision + self.up(y).relu(), text + self.text_up(t[0])


def window_constants(stage: AdapterStage) -> dict[str, np.ndarray]:
    """Arguments of the kernel that do not change, named as in `kernels/reference.py`. Folding left keys and values
    without a bias."""
    own: FoldedAttention = stage.attention
    zero = torch.zeros(len(own.k.weight))
    weight, bias = torch.cat((own.q.weight, own.k.weight, own.v.weight)), torch.cat((own.q.bias, zero, zero))
    return _arrays(
        {
            "position": stage.places,
            "norm_weight": stage.norm.weight,
            "norm_bias": stage.norm.bias,
            "qkv_weight": weight,
            "qkv_bias": bias,
            "out_weight": own.out.weight,
            "out_bias": own.out.bias,
        }
    )


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor.detach().float().numpy()) for name, tensor in tensors.items()}
