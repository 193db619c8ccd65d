"""Exact algebra that merges neighbouring linear maps. Nothing here approximates; tests compare with the unfolded modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .common import ChannelBatchNorm, Pointwise


def linear(matrix: Tensor, bias: Tensor | None) -> nn.Linear:
    """An nn.Linear with the given (out,in) matrix and bias, detached."""
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias is not None)
    layer.weight = nn.Parameter(matrix.detach().clone().float(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone().float(), requires_grad=False)
    return layer


def _affine(layer: nn.Linear | Pointwise) -> tuple[Tensor, Tensor]:
    """Matrix and bias in float64, so that a product rounds once."""
    matrix = (layer.matrix if isinstance(layer, Pointwise) else layer.weight).detach().double()
    bias = matrix.new_zeros(len(matrix)) if layer.bias is None else layer.bias.detach().double()
    return matrix, bias


def compose(first: nn.Linear | Pointwise, second: nn.Linear | Pointwise) -> nn.Linear:
    """second(first(x)) as one matrix."""
    a, a0 = _affine(first)
    b, b0 = _affine(second)
    return linear(b @ a, b @ a0 + b0)


def with_batch_norm(layer: nn.Linear | Pointwise, norm: ChannelBatchNorm) -> nn.Linear:
    """norm(layer(x)) with the running statistics, as one matrix."""
    a, a0 = _affine(layer)
    gain = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return linear(gain[:, None] * a, gain * (a0 - norm.running_mean.double()) + norm.bias.detach().double())


def reordered(layer: nn.Linear, order: Tensor) -> nn.Linear:
    """Output channels of `layer` in another order."""
    return linear(layer.weight[order], layer.bias[order])


def stacked(*layers: nn.Linear) -> nn.Linear:
    """Several layers of the same input side by side: one matrix product."""
    return linear(torch.cat([x.weight for x in layers]), torch.cat([x.bias for x in layers]))
