"""Text encoder of SAM 3: a concept's words as prompt tokens."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.text_towers import ClipText


class ConceptTextStage(nn.Module):
    """tokens (P,L) int64, padded on the right with 0 -> text (P,L,D). Attention is causal: padding is never seen."""

    def __init__(self, tower: ClipText, resizer: nn.Linear) -> None:
        super().__init__()
        self.tower, self.resizer = tower, resizer

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.resizer(self.tower(tokens)),)
