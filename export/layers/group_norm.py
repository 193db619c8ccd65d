"""Group norm with a single group: one mean and one deviation for a whole map."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneGroupNorm(nn.Module):
    """`nn.GroupNorm(1, channels)`, summed in short steps: along rows, along columns, over the channels.

    Exported unchanged, that norm becomes an InstanceNormalization over one row of millions of numbers, which ONNX
    Runtime sums in sequence: 1e-4 of the map is lost, and 9e-4 of the logits computed from it. Mean, norm and division
    are operators that half precision keeps in float32 (`export.precision`).
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x_bchw: Tensor) -> Tensor:
        mean = _mean(x_bchw)
        rows = torch.linalg.vector_norm(x_bchw - mean, dim=3, keepdim=True)
        deviation = (_mean(rows * rows) / x_bchw.shape[3] + self.eps).sqrt()
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        return x_bchw / deviation * weight + (bias - mean / deviation * weight)


def _mean(x_bchw: Tensor) -> Tensor:
    """Return the mean over all but the batch (B,1,1,1), axis by axis: no sum is longer than one side."""
    return x_bchw.mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)
