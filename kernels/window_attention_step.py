"""Hierarchical selective attention of the newest frame of a clip whose other frames are kept (low latency).

`reference.window_attention_step` is the formula, `window_attention.py` the same for all frames. Kept maps are read
where they are, in any order, with their places in the clip; of them, keys and values are projected. At P = 8, T = 8
that is 36.5 GF to project, 8.6 GF and 67 M exponentials to attend, and 2.1 GF for the output.

`window_attention_step_project`: gather, positions, layer norm, k/v of all frames and q of the newest -> scratch
`window_attention_step_attend`:  attention, output projection, scatter, residual
`window_attention_step_fused`:   all of it for short windows
"""

from __future__ import annotations

import triton
import triton.language as tl

from .online_softmax import attend_block
from .window_attention import _attend_rows, _pixel


@triton.jit
def _clip_rows(x_ptr, kept_ptr, pixel, kept_pixels, inside, C: tl.constexpr):
    """Channels of some pixels of a clip (rows, C), in float32: of the kept frames, behind them of the newest one."""
    c, newest = tl.arange(0, C)[None, :], pixel - kept_pixels
    at_kept, at_newest = pixel[:, None].to(tl.int64) * C + c, newest[:, None].to(tl.int64) * C + c
    z = tl.load(kept_ptr + at_kept, mask=(inside & (newest < 0))[:, None], other=0.0).to(tl.float32)
    return z + tl.load(x_ptr + at_newest, mask=(inside & (newest >= 0))[:, None], other=0.0).to(tl.float32)


@triton.jit
def _normalised_clip(
    z, time_ptr, position_ptr, norm_weight_ptr, norm_bias_ptr, time, place, inside, epsilon, C: tl.constexpr,
):  # fmt: skip
    """layer_norm(z + time + position) of some tokens (rows, C), in float32; `time`, `place`: rows of the two tables."""
    c = tl.arange(0, C)
    mask = inside[:, None]
    z += tl.load(time_ptr + time[:, None] * C + c[None, :], mask=mask, other=0.0)
    z += tl.load(position_ptr + place[:, None] * C + c[None, :], mask=mask, other=0.0)
    z -= (tl.sum(z, axis=1) / C)[:, None]
    z *= tl.rsqrt(tl.sum(z * z, axis=1) / C + epsilon)[:, None]
    return z * tl.load(norm_weight_ptr + c)[None, :] + tl.load(norm_bias_ptr + c)[None, :]


@triton.jit
def window_attention_step_project(
    x_ptr, kept_ptr, index_ptr, time_ptr, position_ptr, norm_weight_ptr, norm_bias_ptr, qkv_weight_ptr, qkv_bias_ptr,
    q_ptr, kv_ptr, kept, height, width, windows, scale, epsilon,
    C: tl.constexpr, HEAD: tl.constexpr, PATCH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of BLOCK_T tokens of a frame, kept + 1). x (height, width, C), kept (kept, height, width, C), index:
    places of the kept frames -> q (windows, heads, P*P, HEAD) of x, kv (2, windows, heads, n, HEAD) of all."""
    frame = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    window, place = row // (PATCH * PATCH), row % (PATCH * PATCH)
    inside = window < windows
    token = frame * PATCH * PATCH + place
    pixel = _pixel(window, token, kept + 1, height, width, PATCH)
    time = tl.load(index_ptr + frame, mask=frame < kept, other=kept)
    z = _normalised_clip(
        _clip_rows(x_ptr, kept_ptr, pixel, kept * height * width, inside, C), time_ptr, position_ptr, norm_weight_ptr,
        norm_bias_ptr, time + tl.zeros_like(row), place, inside, epsilon, C,
    ).to(x_ptr.dtype.element_ty)  # fmt: skip
    c, heads, length = tl.arange(0, C), C // HEAD, (kept + 1) * PATCH * PATCH
    for start in tl.range(tl.where(frame < kept, C, 0), 3 * C, BLOCK_C):
        out = start + tl.arange(0, BLOCK_C)
        weight = tl.load(qkv_weight_ptr + out[None, :] * C + c[:, None])
        value = tl.dot(z, weight, input_precision="ieee") + tl.load(qkv_bias_ptr + out)[None, :]
        value = (value * tl.where(start < C, scale, 1.0)).to(q_ptr.dtype.element_ty)
        head, channel = out % C // HEAD, (out % HEAD)[None, :]
        if start < C:
            query = ((window.to(tl.int64) * heads)[:, None] + head[None, :]) * (PATCH * PATCH) + place[:, None]
            tl.store(q_ptr + query * HEAD + channel, value, mask=inside[:, None])
        else:
            part = ((out // C - 1) * windows)[None, :] + window[:, None]
            key = (part.to(tl.int64) * heads + head[None, :]) * length + token[:, None]
            tl.store(kv_ptr + key * HEAD + channel, value, mask=inside[:, None])


@triton.jit
def _attend_newest(
    q_ptr, k_ptr, v_ptr, out_weight_ptr, window, token, queries, length,
    C: tl.constexpr, HEAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr, STAGES:
    tl.constexpr,
):  # fmt: skip
    """Attention of every head of some queries of a window, projected (rows, C).

    q (windows, heads, queries, HEAD), k and v (windows, heads, length, HEAD).
    """
    head, c, column = tl.arange(0, HEAD), tl.arange(0, C), tl.arange(0, BLOCK_N)
    projected = tl.zeros([BLOCK_M, C], tl.float32)
    for h in tl.range(0, C // HEAD):
        row = (window * (C // HEAD) + h).to(tl.int64) * HEAD
        q = tl.load(
            q_ptr + row * queries + token[:, None] * HEAD + head[None, :], mask=(token < queries)[:, None], other=0.0
        )
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, HEAD], tl.float32)
        for start in tl.range(0, length, BLOCK_N, num_stages=STAGES):
            place = row * length + (start + column)[:, None] * HEAD + head[None, :]
            if EVEN:
                k, v = tl.load(k_ptr + place), tl.load(v_ptr + place)
                highest, total, acc = attend_block(q, k, v, highest, total, acc, column, False)
            else:
                known = start + column < length
                k = tl.load(k_ptr + place, mask=known[:, None], other=0.0)
                v = tl.load(v_ptr + place, mask=known[:, None], other=0.0)
                highest, total, acc = attend_block(q, k, v, highest, total, acc, known[None, :], True)
        attended = (acc / total[:, None]).to(q.dtype)
        weight = tl.load(out_weight_ptr + c[None, :] * C + (h * HEAD + head)[:, None])
        projected = tl.dot(attended, weight, projected, input_precision="ieee")
    return projected


@triton.jit
def window_attention_step_attend(
    x_ptr, q_ptr, kv_ptr, out_weight_ptr, out_bias_ptr, y_ptr, frames, height, width, windows,
    C: tl.constexpr, HEAD: tl.constexpr, PATCH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN:
    tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of BLOCK_M queries, windows). y = x + attention of the newest frame (height, width, C)."""
    length = frames * PATCH * PATCH
    window = tl.program_id(1)
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside, c = token < PATCH * PATCH, tl.arange(0, C)
    projected = _attend_newest(
        q_ptr, kv_ptr, kv_ptr + (windows * length).to(tl.int64) * C, out_weight_ptr, window, token, PATCH * PATCH,
        length, C, HEAD, BLOCK_M, BLOCK_N, EVEN, STAGES,
    )  # fmt: skip
    pixel = _pixel(window, token, 1, height, width, PATCH)[:, None].to(tl.int64) * C + c[None, :]
    y = tl.load(x_ptr + pixel, mask=inside[:, None], other=0.0) + projected + tl.load(out_bias_ptr + c)[None, :]
    tl.store(y_ptr + pixel, y.to(y_ptr.dtype.element_ty), mask=inside[:, None])


@triton.jit
def window_attention_step_fused(
    x_ptr, kept_ptr, index_ptr, time_ptr, position_ptr, norm_weight_ptr, norm_bias_ptr, qkv_weight_ptr, qkv_bias_ptr,
    out_weight_ptr, out_bias_ptr, y_ptr, kept, height, width, windows, scale, epsilon, group,
    C: tl.constexpr, HEAD: tl.constexpr, PATCH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (groups of `group` windows), as `window_attention_fused`. What kept frames attend to is not stored."""
    length = (kept + 1) * PATCH * PATCH
    row = tl.arange(0, ROWS)
    member, token = row // length, row % length
    window = tl.program_id(0) * group + member
    inside = (member < group) & (window < windows)
    frame, kept_pixels = token // (PATCH * PATCH), kept * height * width
    pixel = _pixel(window, token, kept + 1, height, width, PATCH)
    time = tl.load(index_ptr + frame, mask=inside & (frame < kept), other=kept)
    z = _normalised_clip(
        _clip_rows(x_ptr, kept_ptr, pixel, kept_pixels, inside, C), time_ptr, position_ptr, norm_weight_ptr,
        norm_bias_ptr, time, token % (PATCH * PATCH), inside, epsilon, C,
    ).to(x_ptr.dtype.element_ty)  # fmt: skip
    projected = _attend_rows(z, member, qkv_weight_ptr, qkv_bias_ptr, out_weight_ptr, scale, C, HEAD, ROWS)
    c = tl.arange(0, C)
    newest = (inside & (frame == kept))[:, None]
    place = (pixel - kept_pixels)[:, None].to(tl.int64) * C + c[None, :]
    y = tl.load(x_ptr + place, mask=newest, other=0.0) + projected + tl.load(out_bias_ptr + c)[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=newest)
