"""Cross-attention to the memory ring: three launches, `reference.memory_attention` is the formula.

Keys are 256 wide and rotated, values are the 64-channel memory itself (the value projection follows outside, which is
exact: see the reference). Work at full memory, 4096 queries x 28,736 keys, one object:

    scores 2 * 4096 * 28736 * 256 = 60 GFLOP, values a quarter of that = 75 GFLOP; exponentials 118 M
    bytes: queries 2 MB, memory 3.7 MB, output 0.5 MB

so it is bound by arithmetic, and by exponentials next (16 per clock and multiprocessor, about a third of the time of
the products on Hopper). Why three launches:

1. `memory_attention_prepare` projects and rotates every key once, into a scratch of L x 256 (15 MB in half: it stays in
   the 60 MB L2). Projecting on load would repeat it for every block of queries: at 128 queries per program that is
   64 / 128 = 50 % more arithmetic than the scores themselves. The same launch gathers present slots, in any order and
   without gaps, behind them the pointers, and rotates the queries with 1/sqrt(d) and log2(e) folded in.
2. `memory_attention_flash` is a plain variable-length flash attention over that dense scratch. One object has only
   4096 / 128 = 32 blocks of queries for 132 multiprocessors, so keys are split among programs (`splits`).
3. `memory_attention_combine` merges the splits; absent when there is one.

The channels of rotated queries and keys stand as [even | odd]: a dot product does not see the order of its channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .online_softmax import attend_block


@triton.jit
def _rotate_store(even, odd, cosine, sine, target, width: tl.constexpr, mask):
    """Store rotated channel pairs as [even | odd] halves of rows at `target` (rows, width / 2)."""
    dtype = target.dtype.element_ty
    tl.store(target, (even * cosine - odd * sine).to(dtype), mask=mask)
    tl.store(target + width // 2, (even * sine + odd * cosine).to(dtype), mask=mask)


@triton.jit
def memory_attention_prepare(
    queries_ptr, memory_ptr, ages_ptr, pointers_ptr, counts_ptr, key_weight_ptr, key_bias_ptr, position_ptr,
    temporal_ptr, cosine_ptr, sine_ptr, rotated_ptr, keys_ptr, values_ptr, tokens, slots, pointers, capacity, scale,
    D: tl.constexpr, M: tl.constexpr, BLOCK_T: tl.constexpr, SLOTS_PADDED: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of BLOCK_T tokens, slots + 2, objects); axis 1: a slot, then the pointers, then the queries.

    queries (b, tokens, D) -> rotated (b, tokens, D); memory (b, slots, tokens, M), pointers (b, pointers, M)
    -> keys (b, capacity, D), values (b, capacity, M), dense from row 0. `scale` = log2(e) / sqrt(D).
    """
    block, part, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = block * BLOCK_T + tl.arange(0, BLOCK_T)
    half = tl.arange(0, D // 2)
    table = row[:, None] * (D // 2) + half[None, :]
    if part > slots:
        valid = (row < tokens)[:, None]
        source = queries_ptr + (b * tokens + row[:, None]) * D + 2 * half[None, :]
        even = tl.load(source, mask=valid, other=0.0).to(tl.float32) * scale
        odd = tl.load(source + 1, mask=valid, other=0.0).to(tl.float32) * scale
        cosine = tl.load(cosine_ptr + table, mask=valid, other=1.0)
        sine = tl.load(sine_ptr + table, mask=valid, other=0.0)
        target = rotated_ptr + (b * tokens + row[:, None]) * D + half[None, :]
        _rotate_store(even, odd, cosine, sine, target, D, valid)
    else:
        slot = tl.arange(0, SLOTS_PADDED)
        ages = tl.load(ages_ptr + b * slots + slot, mask=slot < slots, other=-1)
        start = tl.sum(((ages >= 0) & (slot < part)).to(tl.int32), axis=0) * tokens  # present slots before this one
        is_slot = part < slots
        age = tl.max(tl.where(slot == part, ages, -1), axis=0)
        count = tl.where(is_slot, tl.where(age >= 0, tokens, 0), tl.load(counts_ptr + b))
        if block * BLOCK_T < count:
            m = tl.arange(0, M)
            valid = (row < count)[:, None]
            values = memory_ptr + (b * slots + part) * tokens * M
            if part == slots:
                values = pointers_ptr + b * pointers * M
            x = tl.load(values + row[:, None] * M + m[None, :], mask=valid, other=0.0)
            target = b * capacity + start + row[:, None]
            tl.store(values_ptr + target * M + m[None, :], x, mask=valid)
            placed = (row < tl.where(is_slot, count, 0))[:, None]
            position = tl.load(position_ptr + row[:, None] * M + m[None, :], mask=placed, other=0.0)
            temporal = tl.load(temporal_ptr + tl.maximum(age, 0) * M + m)[None, :]
            x = (x.to(tl.float32) + position + tl.where(placed, temporal, 0.0)).to(memory_ptr.dtype.element_ty)
            weight = key_weight_ptr + 2 * half[None, :] * M + m[:, None]
            even = tl.dot(x, tl.load(weight), input_precision="ieee") + tl.load(key_bias_ptr + 2 * half)[None, :]
            odd = tl.dot(x, tl.load(weight + M), input_precision="ieee") + tl.load(key_bias_ptr + 2 * half + 1)[None, :]
            cosine = tl.load(cosine_ptr + table, mask=placed, other=1.0)  # identity rotation for pointers
            sine = tl.load(sine_ptr + table, mask=placed, other=0.0)
            _rotate_store(even, odd, cosine, sine, keys_ptr + target * D + half[None, :], D, valid)


@triton.jit
def _store_partial(partial_ptr, lse_ptr, place, acc, highest, total, inside, M: tl.constexpr):
    """Store the result of one split at rows `place`, with the logarithm of its softmax sum."""
    m = tl.arange(0, M)
    tl.store(partial_ptr + place[:, None] * M + m[None, :], acc, mask=inside[:, None])
    tl.store(lse_ptr + place, highest + tl.log2(total), mask=inside)


@triton.jit
def memory_attention_flash(
    rotated_ptr, keys_ptr, values_ptr, ages_ptr, counts_ptr, out_ptr, partial_ptr, lse_ptr, tokens, slots, capacity,
    splits, D: tl.constexpr, M: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    TMA: tl.constexpr, SPECIALIZE: tl.constexpr, SLOTS_PADDED: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of BLOCK_M queries, splits, objects). rotated (b, tokens, D), keys (b, capacity, D), values
    (b, capacity, M) -> out (b, tokens, M) when splits is 1, else partial (b, splits, tokens, M) and lse (b, splits,
    tokens) float32, in powers of two.

    TMA: key and value blocks come through tensor descriptors (sm_90 on). SPECIALIZE: producer and consumer warps.
    """
    split, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    d, m, column, slot = tl.arange(0, D), tl.arange(0, M), tl.arange(0, BLOCK_N), tl.arange(0, SLOTS_PADDED)
    ages = tl.load(ages_ptr + b * slots + slot, mask=slot < slots, other=-1)
    length = tl.sum((ages >= 0).to(tl.int32), axis=0) * tokens + tl.load(counts_ptr + b)
    share = tl.cdiv(tl.cdiv(length, BLOCK_N), splits) * BLOCK_N
    begin = tl.minimum(split * share, length)
    end = tl.minimum(begin + share, length)
    whole = begin + (end - begin) // BLOCK_N * BLOCK_N

    q = tl.load(rotated_ptr + (b * tokens + row[:, None]) * D + d[None, :], mask=(row < tokens)[:, None], other=0.0)
    keys_ptr, values_ptr = keys_ptr + b * capacity * D, values_ptr + b * capacity * M
    if TMA:
        keys = tl.make_tensor_descriptor(keys_ptr, [length, D], [D, 1], [BLOCK_N, D])
        values = tl.make_tensor_descriptor(values_ptr, [length, M], [M, 1], [BLOCK_N, M])
    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, M], tl.float32)
    for start in tl.range(begin, whole, BLOCK_N, num_stages=STAGES, warp_specialize=SPECIALIZE):
        if TMA:
            k, v = keys.load([start, 0]), values.load([start, 0])
        else:
            k = tl.load(keys_ptr + (start + column)[:, None] * D + d[None, :])
            v = tl.load(values_ptr + (start + column)[:, None] * M + m[None, :])
        highest, total, acc = attend_block(q, k, v, highest, total, acc, column, False)
    if whole < end:  # the last block of an object is rarely full
        valid = whole + column < end
        k = tl.load(keys_ptr + (whole + column)[:, None] * D + d[None, :], mask=valid[:, None], other=0.0)
        v = tl.load(values_ptr + (whole + column)[:, None] * M + m[None, :], mask=valid[:, None], other=0.0)
        highest, total, acc = attend_block(q, k, v, highest, total, acc, valid[None, :], True)

    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    if splits == 1:
        out = out_ptr + (b * tokens + row[:, None]) * M + m[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=(row < tokens)[:, None])
    else:
        place = (b * splits + split) * tokens + row
        _store_partial(partial_ptr, lse_ptr, place, acc, highest, total, row < tokens, M)


@triton.jit
def memory_attention_combine(partial_ptr, lse_ptr, out_ptr, tokens, splits, M: tl.constexpr, BLOCK_T: tl.constexpr):
    """Grid (blocks of BLOCK_T queries, objects). partial (b, splits, tokens, M), lse (b, splits, tokens) -> out
    (b, tokens, M): the mean of the splits, weighted by their share of the softmax sum."""
    b = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    m = tl.arange(0, M)
    inside = row < tokens
    highest = tl.full([BLOCK_T], float("-inf"), tl.float32)
    for split in range(splits):
        lse = tl.load(lse_ptr + (b * splits + split) * tokens + row, mask=inside, other=0.0)
        highest = tl.maximum(highest, lse)
    highest = tl.where(highest == float("-inf"), 0.0, highest)  # an object without memory
    total = tl.zeros([BLOCK_T], tl.float32)
    acc = tl.zeros([BLOCK_T, M], tl.float32)
    for split in range(splits):
        place = (b * splits + split) * tokens + row
        share = tl.exp2(tl.load(lse_ptr + place, mask=inside, other=0.0) - highest)
        total += share
        acc += share[:, None] * tl.load(partial_ptr + place[:, None] * M + m[None, :], mask=inside[:, None], other=0.0)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    out = out_ptr + (b * tokens + row[:, None]) * M + m[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=inside[:, None])
