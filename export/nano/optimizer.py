"""Muon for the matrices inside the network, AdamW for all other parameters; exponential average of the weights.

Muon (Jordan et al., 2024) orthogonalises the momentum of a matrix before each step, which learns more from few steps.
Orthogonalising costs about the cube of the shorter side of a matrix, so the widest matrices stay with AdamW.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .data_parallel import ProcessGroup

MIN_SIDE, MAX_SIDE = 32, 192
"""Shorter sides of the matrices for Muon: narrower ones are last layers of heads, wider ones cost too much."""
EXCLUDED = ("embed_", "classifier")
"""Parts of names of matrices that do not map features to features."""


class MuonAdamW:
    """Two optimizers behind one interface. `param_groups` are live: a learning rate written there is used."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float) -> None:
        muon = [p for name, p in named if _uses_muon(name, p)]
        rest = [p for name, p in named if not _uses_muon(name, p)]
        matrices, vectors = [p for p in rest if p.ndim >= 2], [p for p in rest if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        rule = "match_rms_adamw"
        self.parts: list[torch.optim.Optimizer] = []
        if muon:
            self.parts.append(torch.optim.Muon(muon, learning_rate, weight_decay, momentum=0.95, adjust_lr_fn=rule))
        if rest:
            self.parts.append(torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.98), fused=True))

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


class WeightAverage:
    """Exponential moving average of weights and batch-norm statistics. Each tensor is updated by one process of the
    group: weights by the one that owns them (`owned` names), statistics by rank 0."""

    def __init__(self, model: nn.Module, decay: float, group: ProcessGroup, owned: set[str]) -> None:
        parameters = dict(model.named_parameters())
        self.model, self.decay = model, decay
        self.values = {
            name: group.shared_average(parameters[name]) if name in parameters else value.detach().clone().float()
            for name, value in model.state_dict().items()
            if value.is_floating_point()
        }
        self.updated = [n for n in self.values if n in owned or (n not in parameters and group.rank == 0)]

    def update(self, step: int) -> None:
        """Add the current weights; the first steps count less, so that early weights are forgotten."""
        weight, state = 1 - min(self.decay, (1 + step) / (20 + step)), self.model.state_dict()
        values: list[Tensor] = [self.values[n] for n in self.updated]
        torch._foreach_lerp_(values, [state[n].float() for n in self.updated], weight)

    def load(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.values[name].copy_(value)


def update_cost(name: str, p: nn.Parameter) -> float:
    """Estimate the cost of updating a parameter, to divide them among processes."""
    return p.numel() * (2.0 * min(p.shape) if _uses_muon(name, p) else 20.0)


def _uses_muon(name: str, p: nn.Parameter) -> bool:
    return p.ndim == 2 and MIN_SIDE <= min(p.shape) <= MAX_SIDE and not any(word in name for word in EXCLUDED)
