"""Hierarchical selective attention: one launch for short windows, two for long ones.

`reference.window_attention` is the formula: windows of n = T*P*P tokens of 256 channels, 8 heads of 32. Where to cut is
a matter of on-chip memory (227 KB on sm_90, 163 on sm_80, 99 on sm_86/89/120). A window of the finest level at T = 8
holds 512 tokens: 256 KB of half-precision input and 768 KB of q, k, v, more than any chip keeps. At n <= 32 everything
is kept. Between, registers decide: 64 rows of float32 sums beside the products of a head spill 80 (sm_90) to 768 bytes
per thread, 32 rows on 8 warps none on any target (`kernels/resources.json`).

Roofline at 1024 px, T = 8, half precision, H200 (4.3 TB/s and 790 TFLOP/s measured; 3.6 T exponentials/s by 16 per
clock and multiprocessor):

    level      n   project   attend    out      exponentials   bytes moved at least
    P = 8    512   51.5 GF   68.7 GF  17.2 GF   537 M = 150 us   134 MB =  31 us, with q, k, v stored 536 MB = 125 us
    P = 4    128   12.9 GF    4.3 GF   4.3 GF    34 M =   9 us    34 MB =   8 us
    P = 2     32    3.2 GF    0.3 GF   1.1 GF     2 M =   1 us     8 MB =   2 us

So at P = 8 storing q, k, v costs less than the exponentials, and hides behind them in other programs; recomputing them
per block of queries would add 51.5 GF for each of the three further blocks. The output projection is fused into the
attention (a program holds all heads of its queries): that saves 134 MB, and the scatter and residual come for free.

`window_attention_project`: gather, positions, layer norm, q/k/v    -> scratch (3, windows, heads, n, 32)
`window_attention_attend`:  attention, output projection, scatter, residual
`window_attention_fused`:   all of it, several windows per program so that the matrix units see 32 rows
"""

from __future__ import annotations

import triton
import triton.language as tl

from .online_softmax import attend_block


@triton.jit
def _pixel(window, token, frames, height, width, PATCH: tl.constexpr):
    """Offset of a window's token in (frames, height, width): tokens are frame-major, then row-major in the patch."""
    frame, place = token // (PATCH * PATCH), token % (PATCH * PATCH)
    across = width // PATCH
    y = window // across * PATCH + place // PATCH
    x = window % across * PATCH + place % PATCH
    return (frame * height + y) * width + x


@triton.jit
def _normalised(
    x_ptr, time_ptr, position_ptr, norm_weight_ptr, norm_bias_ptr, pixel, token, inside, epsilon,
    C: tl.constexpr, PATCH: tl.constexpr,
):  # fmt: skip
    """layer_norm(x + time + position) of some tokens (rows, C), in float32."""
    c = tl.arange(0, C)
    mask = inside[:, None]
    z = tl.load(x_ptr + pixel[:, None].to(tl.int64) * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
    z += tl.load(time_ptr + (token // (PATCH * PATCH))[:, None] * C + c[None, :], mask=mask, other=0.0)
    z += tl.load(position_ptr + (token % (PATCH * PATCH))[:, None] * C + c[None, :], mask=mask, other=0.0)
    z -= (tl.sum(z, axis=1) / C)[:, None]
    z *= tl.rsqrt(tl.sum(z * z, axis=1) / C + epsilon)[:, None]
    return z * tl.load(norm_weight_ptr + c)[None, :] + tl.load(norm_bias_ptr + c)[None, :]


@triton.jit
def window_attention_project(
    x_ptr, time_ptr, position_ptr, norm_weight_ptr, norm_bias_ptr, qkv_weight_ptr, qkv_bias_ptr, qkv_ptr, frames,
    height, width, windows, scale, epsilon,
    C: tl.constexpr, HEAD: tl.constexpr, PATCH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of BLOCK_T tokens of all windows in a row). x (frames, height, width, C) -> qkv (3, windows, heads,
    n, HEAD). Queries are scaled by `scale` = log2(e) / sqrt(HEAD)."""
    length = frames * PATCH * PATCH
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    window, token = row // length, row % length
    inside = window < windows
    pixel = _pixel(window, token, frames, height, width, PATCH)
    z = _normalised(
        x_ptr, time_ptr, position_ptr, norm_weight_ptr, norm_bias_ptr, pixel, token, inside, epsilon, C, PATCH
    )
    z = z.to(x_ptr.dtype.element_ty)
    c = tl.arange(0, C)
    heads = C // HEAD
    for start in tl.range(0, 3 * C, BLOCK_C):
        out = start + tl.arange(0, BLOCK_C)
        weight = tl.load(qkv_weight_ptr + out[None, :] * C + c[:, None])
        value = tl.dot(z, weight, input_precision="ieee") + tl.load(qkv_bias_ptr + out)[None, :]
        value = value * tl.where(start < C, scale, 1.0)
        part, head = out // C, out % C // HEAD
        place = ((part * windows)[None, :] + window[:, None]).to(tl.int64) * heads + head[None, :]
        target = qkv_ptr + (place * length + token[:, None]) * HEAD + (out % HEAD)[None, :]
        tl.store(target, value.to(qkv_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def window_attention_attend(
    x_ptr, qkv_ptr, out_weight_ptr, out_bias_ptr, y_ptr, frames, height, width, windows,
    C: tl.constexpr, HEAD: tl.constexpr, PATCH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN:
    tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of BLOCK_M queries, windows). y = x + attention of every head, projected by out_weight (C, C).

    EVEN: n is a multiple of BLOCK_N, no key needs a mask.
    """
    length = frames * PATCH * PATCH
    window = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = token < length
    head, c, column = tl.arange(0, HEAD), tl.arange(0, C), tl.arange(0, BLOCK_N)
    third = (windows * length).to(tl.int64) * C
    projected = tl.zeros([BLOCK_M, C], tl.float32)
    for h in tl.range(0, C // HEAD):
        base = qkv_ptr + (window * (C // HEAD) + h).to(tl.int64) * length * HEAD
        q = tl.load(base + token[:, None] * HEAD + head[None, :], mask=inside[:, None], other=0.0)
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD], tl.float32)
        for start in tl.range(0, length, BLOCK_N, num_stages=STAGES):
            place = (start + column)[:, None] * HEAD + head[None, :]
            if EVEN:
                k, v = tl.load(base + third + place), tl.load(base + 2 * third + place)
                highest, total, acc = attend_block(q, k, v, highest, total, acc, column, False)
            else:
                known = start + column < length
                k = tl.load(base + third + place, mask=known[:, None], other=0.0)
                v = tl.load(base + 2 * third + place, mask=known[:, None], other=0.0)
                highest, total, acc = attend_block(q, k, v, highest, total, acc, known[None, :], True)
        attended = (acc / total[:, None]).to(x_ptr.dtype.element_ty)
        weight = tl.load(out_weight_ptr + c[None, :] * C + (h * HEAD + head)[:, None])
        projected = tl.dot(attended, weight, projected, input_precision="ieee")
    pixel = _pixel(window, token, frames, height, width, PATCH)[:, None].to(tl.int64) * C + c[None, :]
    y = tl.load(x_ptr + pixel, mask=inside[:, None], other=0.0) + projected + tl.load(out_bias_ptr + c)[None, :]
    tl.store(y_ptr + pixel, y.to(y_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _attend_rows(
    z, member, qkv_weight_ptr, qkv_bias_ptr, out_weight_ptr, scale, C: tl.constexpr, HEAD: tl.constexpr, ROWS:
    tl.constexpr,
):  # fmt: skip
    """Attention of every head between the rows of each member, projected (ROWS, C)."""
    c, head = tl.arange(0, C), tl.arange(0, HEAD)
    # all rows of a member have a window, or none of them has and nothing of them is stored
    visible = member[:, None] == member[None, :]
    projected = tl.zeros([ROWS, C], tl.float32)
    # values are computed last: with 32 rows and 8 warps no register is spilled on any target
    for h in tl.range(0, C // HEAD):
        out = h * HEAD + head
        source = qkv_weight_ptr + out[None, :] * C + c[:, None]
        q = tl.dot(z, tl.load(source), input_precision="ieee") + tl.load(qkv_bias_ptr + out)[None, :]
        q = (q * scale).to(z.dtype)
        k = tl.dot(z, tl.load(source + C * C), input_precision="ieee") + tl.load(qkv_bias_ptr + C + out)[None, :]
        scores = tl.dot(q, tl.trans(k.to(z.dtype)), input_precision="ieee")
        scores = tl.where(visible, scores, float("-inf"))
        p = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
        p = (p / tl.sum(p, axis=1)[:, None]).to(z.dtype)
        v = tl.dot(z, tl.load(source + 2 * C * C), input_precision="ieee")
        v += tl.load(qkv_bias_ptr + 2 * C + out)[None, :]
        attended = tl.dot(p, v.to(z.dtype), input_precision="ieee")
        weight = tl.load(out_weight_ptr + c[None, :] * C + out[:, None])
        projected = tl.dot(attended.to(z.dtype), weight, projected, input_precision="ieee")
    return projected


@triton.jit
def window_attention_fused(
    x_ptr, time_ptr, position_ptr, norm_weight_ptr, norm_bias_ptr, qkv_weight_ptr, qkv_bias_ptr, out_weight_ptr,
    out_bias_ptr, y_ptr, frames, height, width, windows, scale, epsilon, group,
    C: tl.constexpr, HEAD: tl.constexpr, PATCH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (groups of `group` windows). A program holds ROWS >= group * n tokens; a token sees its own window only."""
    length = frames * PATCH * PATCH
    row = tl.arange(0, ROWS)
    member, token = row // length, row % length
    window = tl.program_id(0) * group + member
    inside = (member < group) & (window < windows)
    pixel = _pixel(window, token, frames, height, width, PATCH)
    z = _normalised(
        x_ptr, time_ptr, position_ptr, norm_weight_ptr, norm_bias_ptr, pixel, token, inside, epsilon, C, PATCH
    )
    z = z.to(x_ptr.dtype.element_ty)
    projected = _attend_rows(z, member, qkv_weight_ptr, qkv_bias_ptr, out_weight_ptr, scale, C, HEAD, ROWS)
    c = tl.arange(0, C)
    place = pixel[:, None].to(tl.int64) * C + c[None, :]
    y = tl.load(x_ptr + place, mask=inside[:, None], other=0.0) + projected + tl.load(out_bias_ptr + c)[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=inside[:, None])
