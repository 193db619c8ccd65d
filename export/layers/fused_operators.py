"""Operators of ONNX Runtime that compute several of the standard's in one launch, for graphs of the form `cuda`.

Each has a formula in torch, which runs everywhere but in the export; parity compares the two.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import targets_cuda
from .positions import rotate_halves


def rotate(x_bnd: Tensor, cos_nh: Tensor, sin_nh: Tensor) -> Tensor:
    """Rotate channels in the order of `positions.pairs_to_halves`; tables of N positions and half the width."""
    if not targets_cuda():
        return rotate_halves(x_bnd, cos_nh, sin_nh)
    first = torch.zeros(1, dtype=torch.int64)
    name, inputs = "com.microsoft::RotaryEmbedding", (x_bnd, first, cos_nh, sin_nh)
    return torch.onnx.ops.symbolic(name, inputs, dtype=x_bnd.dtype, shape=x_bnd.shape, version=1)


def add_norm(x_bnd: Tensor, branch_bnd: Tensor, bias_d: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return norm(sum) and the sum of a residual and a branch whose last bias is not added yet."""
    if not targets_cuda():
        total = x_bnd + (branch_bnd + bias_d)
        return norm(total), total
    name, inputs = "com.microsoft::SkipLayerNormalization", (x_bnd, branch_bnd, norm.weight, norm.bias, bias_d)
    # mean and deviation, which inference does not compute, stand between the two results
    row, kinds = (*x_bnd.shape[:2], 1), (x_bnd.dtype, torch.float32, torch.float32, x_bnd.dtype)
    normed, _, _, total = torch.onnx.ops.symbolic_multi_out(
        name, inputs, {"epsilon": norm.eps}, dtypes=kinds, shapes=(x_bnd.shape, row, row, x_bnd.shape), version=1
    )
    return normed, total
