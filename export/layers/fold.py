"""Exact algebra that merges neighbouring linear maps; tests compare every fold with the unfolded modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import attend
from .common import ChannelBatchNorm, Pointwise


def linear(matrix: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return an nn.Linear with a detached copy of the matrix (out,in) and bias."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None)
    layer.weight = nn.Parameter(matrix.detach().clone().float(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone().float(), requires_grad=False)
    return layer


def _affine(layer: nn.Linear | Pointwise) -> tuple[Tensor, Tensor]:
    """Return matrix and bias in float64, so that a product is rounded once."""
    matrix = (layer.matrix if isinstance(layer, Pointwise) else layer.weight).detach().double()
    bias = matrix.new_zeros(len(matrix)) if layer.bias is None else layer.bias.detach().double()
    return matrix, bias


def compose(first: nn.Linear | Pointwise, second: nn.Linear | Pointwise) -> nn.Linear:
    """Return second(first(x)) as one layer."""
    a, a0 = _affine(first)
    b, b0 = _affine(second)
    return linear(b @ a, b @ a0 + b0)


def compose_transposed(first: nn.ConvTranspose2d, second: nn.Conv2d) -> nn.ConvTranspose2d:
    """Return second(first(x)), a 1x1 convolution after a transposed one of 2x2, as one layer."""
    layer = nn.ConvTranspose2d(first.in_channels, second.out_channels, 2, 2)
    matrix = second.weight.detach().flatten(1).double()
    weight = torch.einsum("iokl,po->ipkl", first.weight.detach().double(), matrix)
    bias = matrix @ first.bias.detach().double() + second.bias.detach().double()
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer


def compose_convolution(first: nn.Conv2d, second: Pointwise) -> nn.Conv2d:
    """Return second(first(x)), a 1x1 convolution after a padded one of 3x3, as one layer on (B,C,H,W)."""
    matrix, bias = _affine(second)
    layer = nn.Conv2d(first.in_channels, len(matrix), 3, padding=1)
    weight = torch.einsum("oikl,po->pikl", first.weight.detach().double(), matrix)
    bias = matrix @ first.bias.detach().double() + bias
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(bias.float(), requires_grad=False)
    return layer


def with_batch_norm(layer: nn.Linear | Pointwise, norm: ChannelBatchNorm) -> nn.Linear:
    """Return norm(layer(x)), with the running statistics, as one layer."""
    a, a0 = _affine(layer)
    gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return linear(gain[:, None] * a, gain * (a0 - norm.running_mean.double()) + norm.bias.detach().double())


def reordered(layer: nn.Linear, order: Tensor) -> nn.Linear:
    """Return `layer` with its output channels in another order."""
    return linear(layer.weight[order], layer.bias[order])


class FoldedAttention(nn.Module):
    """Attention whose keys and values need no bias.

    A bias shared by all keys shifts every score of a query alike, and softmax is invariant to that; a bias shared by
    all values passes through, because a softmax row sums to 1, and is added after the output projection. Keys of zero
    inputs (padding) are zero, too. Rotated keys cannot be folded: a rotated bias differs from key to key.
    """

    def __init__(self, weight: Tensor, bias: Tensor, out: nn.Linear, heads: int) -> None:
        """`weight` (3C,D) and `bias` (3C) hold queries, keys and values; `out` takes the mixed values (C)."""
        super().__init__()
        (q, k, v), (q_bias, _, v_bias) = weight.detach().chunk(3), bias.detach().chunk(3)
        self.heads = heads
        self.q, self.k, self.v = linear(q, q_bias), linear(k, None), linear(v, None)
        matrix, out_bias = _affine(out)
        self.out = linear(matrix, out_bias + matrix @ v_bias.double())

    def forward(self, q_blc: Tensor, k_bsc: Tensor, split: tuple[int, int] | None = None) -> Tensor:
        """Attend from queries to keys, which are also the values; `split` as in `attend`."""
        mixed = attend(self.q(q_blc), self.k(k_bsc), self.v(k_bsc), self.heads, split=split)
        return self.out(mixed)
