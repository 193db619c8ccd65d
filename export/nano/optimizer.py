"""Muon for the matrices inside the network, AdamW for everything else.

Muon (Jordan et al., 2024) turns the momentum of a matrix into the nearest orthogonal one before it steps, which learns more
from few steps. Orthogonalising costs about the cube of a matrix's shorter side, so the widest matrices stay with AdamW.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

NARROWEST, WIDEST = 32, 192
"""Shorter sides of the matrices that Muon takes: narrower ones are last layers of heads, wider ones cost too much."""

TABLES = ("embed_", "classes")
"""Parts of names of matrices that are no maps from features to features."""


class MuonAdamW:
    """Two optimizers as one. `param_groups` are live: a rate written there is used."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], rate: float, decay: float) -> None:
        inner = [p for name, p in named if _inner(name, p)]
        known = {id(p) for p in inner}
        rest = [p for _, p in named if id(p) not in known]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = []
        if inner:
            self.parts.append(
                torch.optim.Muon(inner, lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
            )
        if rest:
            self.parts.append(
                torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=(0.9, 0.98), fused=True)
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


def cost(name: str, p: nn.Parameter) -> float:
    """About how much arithmetic an update takes."""
    return p.numel() * (2.0 * min(p.shape) if _inner(name, p) else 20.0)


def _inner(name: str, p: nn.Parameter) -> bool:
    return p.ndim == 2 and NARROWEST <= min(p.shape) <= WIDEST and not any(word in name for word in TABLES)
