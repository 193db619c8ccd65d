"""Position encodings and rotations; all of them are constants of a network, and only `RandomPositions` has weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def _interleaved(angles: Tensor) -> Tensor:
    """Encode angles (..., C/2) as (..., C): sines on even channels, cosines on odd ones."""
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)


def _periods(channels: int) -> Tensor:
    """Return the divisors of the C/2 sine-cosine pairs: 10000^(2k/C)."""
    return 10000.0 ** (2 * torch.arange(channels // 2, dtype=torch.float32) / channels)


def sine_grid(side: int, channels: int) -> Tensor:
    """Encode the cells of a square map (side*side,channels): y in the first half, then x; 1..side over 2 pi."""
    steps = torch.arange(1, side + 1, dtype=torch.float32)
    steps = steps / (steps[-1:] + 1e-6) * (2 * math.pi)
    code = _interleaved(steps[:, None] / _periods(channels // 2))
    y = code[:, None].expand(side, side, -1)
    x = code[None].expand(side, side, -1)
    return torch.cat((y, x), -1).reshape(side * side, channels)


def sine_values(values: Tensor, channels: int) -> Tensor:
    """Encode numbers in [0,1] of any shape as (..., channels): one turn over the range, sine and cosine alternating."""
    return _interleaved(values[..., None] * (2 * math.pi) / _periods(channels).to(values.device))


def sine_steps(count_like: Tensor, channels: int) -> Tensor:
    """Encode T steps, normalised by T, as (T,channels); T is the length of `count_like` and may be a symbol."""
    steps = torch.arange(1, count_like.shape[0] + 1, dtype=torch.float32, device=count_like.device)
    steps = steps / (steps[-1:] + 1e-6) * (2 * math.pi)
    return _interleaved(steps[:, None] / _periods(channels).to(count_like.device))


def sine_distance(distance: Tensor, channels: int) -> Tensor:
    """Encode scalars of any shape as (..., channels): all sines, then all cosines, each frequency twice in a row.

    These are SAM 2.1's pointer positions; the published weights were trained with doubled frequencies.
    """
    angles = distance[..., None] / _periods(channels // 2).repeat_interleave(2).to(distance.device)
    return torch.cat((angles.sin(), angles.cos()), -1)


def rotation_tables(side: int, channels: int, step: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (side*side,channels/2) of the axial RoPE: x in the first half of the pairs, then y.

    `step`: distance of neighbouring cells.
    """
    quarter = channels // 4
    frequencies = 10000.0 ** (-4 * torch.arange(quarter, dtype=torch.float32) / channels)
    cell = torch.arange(side * side)
    x, y = (cell % side) * step, cell.div(side, rounding_mode="floor") * step
    angles = torch.cat((x[:, None] * frequencies, y[:, None] * frequencies), -1)
    return angles.cos(), angles.sin()


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate adjacent channel pairs of (...,N,C) by tables (N,C/2)."""
    even, odd = x.unflatten(-1, (x.shape[-1] // 2, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channels in the order of `pairs_to_halves`, which needs no interleaving in the graph."""
    even, odd = x.chunk(2, -1)
    return torch.cat((even * cos - odd * sin, even * sin + odd * cos), -1)


def pairs_to_halves(channels: int) -> Tensor:
    """Return the channel order that turns adjacent pairs into halves; on both q and k it keeps all dot products."""
    return torch.cat((torch.arange(0, channels, 2), torch.arange(1, channels, 2)))


class RandomPositions(nn.Module):
    """Random Fourier encoding of coordinates in [0,1]; the matrix is part of the checkpoint."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, xy: Tensor) -> Tensor:
        """Encode coordinates (...,2) as (...,width): sines, then cosines."""
        angles = (2 * xy - 1) @ self.positional_encoding_gaussian_matrix * (2 * math.pi)
        return torch.cat((angles.sin(), angles.cos()), -1)

    def grid(self, side: int) -> Tensor:
        """Encode the cell centres of a square map as (side*side,width)."""
        device = self.positional_encoding_gaussian_matrix.device
        steps = (torch.arange(side, dtype=torch.float32, device=device) + 0.5) / side
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        return self(torch.stack((x, y), -1).reshape(side * side, 2))
