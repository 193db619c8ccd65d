"""Group norm with a single group: one mean and one deviation for a whole map."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneGroupNorm(nn.Module):
    """`nn.GroupNorm(1, channels)`, summed in two short steps: over each channel's pixels, then over the channels.

    Exported as it is, that norm becomes an InstanceNormalization over one row of millions of numbers, which ONNX
    Runtime sums in sequence: 1e-4 of the map is lost, and 9e-4 of the logits behind it. Mean, norm and division are
    operators that half precision leaves in float32 (`export.precision`).
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x_bchw: Tensor) -> Tensor:
        pixels = x_bchw.shape[2] * x_bchw.shape[3]
        mean = x_bchw.mean((2, 3), keepdim=True).mean(1, keepdim=True)
        spread = torch.linalg.vector_norm(x_bchw - mean, dim=(2, 3), keepdim=True)
        deviation = ((spread * spread).mean(1, keepdim=True) / pixels + self.eps).sqrt()
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        return x_bchw / deviation * weight + (bias - mean / deviation * weight)
