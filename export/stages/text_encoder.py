"""Text layers between two cross-modal adapters; `text_0` (embedding and first layers) runs once per prompt."""

from __future__ import annotations

from torch import Tensor, nn

from ..layers.roberta import Roberta


class FirstText(nn.Module):
    """tokens (L) int64 -> text_0 (L,W)."""

    def __init__(self, tower: Roberta, last: int) -> None:
        super().__init__()
        self.tower, self.last = tower, last

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.tower.run(0, self.last, self.tower.embed(tokens[None]))[0],)


class NextText(nn.Module):
    """text (L,W) -> (L,W): layers first..last-1."""

    def __init__(self, tower: Roberta, first: int, last: int) -> None:
        super().__init__()
        self.layers = tower.layers[first:last]

    def forward(self, text: Tensor) -> tuple[Tensor]:
        x = text[None]
        for layer in self.layers:
            x = layer(x)
        return (x[0],)
