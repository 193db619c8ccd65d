"""Conditional memory encoder (CME): detects that the tracked object no longer fits the sentence.

In that case the mask to be remembered is moved toward the mask that is predicted without memory; the result of the
frame itself does not change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.attention import PackedAttention
from ..layers.common import upsample


class DecisionBlock(nn.Module):
    """Post-norm transformer block. The checkpoint has three norms, of which the second is never applied."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = PackedAttention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x_blc: Tensor) -> Tensor:
        x = self.norm1(x_blc + self.self_attn(x_blc, x_blc))
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


class ConditionalMemory(nn.Module):
    """Trainable module: two tokens -> two logits, (stay, switch)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.transformerBlock = DecisionBlock(width, heads, hidden)
        self.decision_token = nn.Embedding(1, width)
        self.decision_class_head = nn.Linear(width, 2)

    def forward(self, pointer_bd: Tensor, early_bd: Tensor) -> Tensor:
        """Classify the pointer of the decode with memory and the early token of the one without: (B,2)."""
        token = self.decision_token.weight.expand(pointer_bd.shape[0], -1)
        return self.decision_class_head(self.transformerBlock(torch.stack((token, pointer_bd, early_bd), 1))[:, 0])


def reweight(logits_bhw: Tensor, memoryless_bhw: Tensor, switched_b: Tensor) -> Tensor:
    """Return ten times the memory-less logits where an object switched and they are positive, else `logits_bhw`."""
    take = switched_b[:, None, None] & (memoryless_bhw > 0)
    return torch.where(take, 10 * memoryless_bhw, logits_bhw)


class ConditionalMemoryStage(nn.Module):
    """pointer, early_token (B,D), low_res_logits, memoryless_logits (B,S4,S4)
    -> remembered_logits (B,I,I), decision (B,2), switched (B) bool."""

    def __init__(self, conditional: ConditionalMemory, image_size: int) -> None:
        super().__init__()
        self.conditional, self.image_size = conditional, image_size

    def forward(
        self, pointer: Tensor, early_token: Tensor, low_res_logits: Tensor, memoryless_logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        decision = self.conditional(pointer, early_token)
        switched = decision[:, 1] > decision[:, 0]
        logits, memoryless = upsample(low_res_logits, self.image_size), upsample(memoryless_logits, self.image_size)
        return reweight(logits, memoryless, switched), decision, switched
