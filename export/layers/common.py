"""Small layers shared by several networks."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with an activation between them; parameters `layers.0` .. `layers.n-1`."""

    def __init__(self, width: int, hidden: int, out: int, depth: int, gelu: bool = False) -> None:
        super().__init__()
        widths = [width, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.activation = F.gelu if gelu else F.relu

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class Pointwise(nn.Module):
    """A 1x1 convolution on channel-last maps. Weight (out,in,1,1), or (in,out,1,1) where the checkpoint transposes."""

    def __init__(self, width: int, out: int, bias: bool = True, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        self.weight = nn.Parameter(torch.empty((width, out, 1, 1) if transposed else (out, width, 1, 1)))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        nn.init.kaiming_uniform_(self.matrix, a=5**0.5)

    @property
    def matrix(self) -> Tensor:
        """The weight as a matrix (out,in)."""
        matrix = self.weight.flatten(1)
        return matrix.T if self.transposed else matrix

    def forward(self, x_bhwc: Tensor) -> Tensor:
        return F.linear(x_bhwc, self.matrix, self.bias)


class ChannelBatchNorm(nn.BatchNorm2d):
    """Batch norm over the last axis of channel-last maps (B,H,W,C)."""

    def forward(self, x_bhwc: Tensor) -> Tensor:
        return super().forward(x_bhwc.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B,C,H,W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_bchw: Tensor) -> Tensor:
        x_bhwc = F.layer_norm(x_bchw.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return x_bhwc.permute(0, 3, 1, 2)


class Group(nn.Module):
    """Container that adds a level to parameter names: `Group(model=Group(encoder=x))` -> `model.encoder.*`."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


def upsample(maps_bhw: Tensor, side: int) -> Tensor:
    """Resize (B,h,w) to (B,side,side), bilinear with align_corners false; the identity where h = w = side."""
    return F.interpolate(maps_bhw[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]


def double(x_bhwc: Tensor) -> Tensor:
    """Upsample a channel-last map by 2, nearest neighbour."""
    b, h, w, c = x_bhwc.shape
    return x_bhwc[:, :, None, :, None].expand(b, h, 2, w, 2, c).reshape(b, 2 * h, 2 * w, c)
