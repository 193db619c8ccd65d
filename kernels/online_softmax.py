"""The step of flash attention that both attention kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attend_block(q, k, v, highest, total, acc, visible, MASKED: tl.constexpr):
    """Add one block of keys to the running softmax: row maximum, row sum, weighted values; scores are base 2.

    MASKED: `visible`, which broadcasts to the scores, tells which keys count; otherwise all do.
    """
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(scores, axis=1))
    decay = tl.exp2(highest - new_highest)
    p = tl.exp2(scores - new_highest[:, None])
    acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
    return new_highest, total * decay + tl.sum(p, axis=1), acc
