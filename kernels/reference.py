"""Reference formulas of the kernels, in plain numpy and in the precision of the input.

Shape letters: b object, s slot, n token of a map, p pointer token, d width of queries and keys (256), m width of the
memory (64), t frame, c channel, w window, h head, y/x row and column.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Taps = tuple[np.ndarray, np.ndarray]
"""First source position (target,) and weights (target, taps) of one axis of a resize."""


def rotate(x_bnd: np.ndarray, cosine_nk: np.ndarray, sine_nk: np.ndarray) -> np.ndarray:
    """Rotary position on adjacent channel pairs: (a, b) -> (a cos - b sin, a sin + b cos); tables hold d/2 pairs."""
    out = np.empty_like(x_bnd)
    even, odd = x_bnd[..., 0::2], x_bnd[..., 1::2]
    out[..., 0::2] = even * cosine_nk - odd * sine_nk
    out[..., 1::2] = even * sine_nk + odd * cosine_nk
    return out


def rotary_tables(side: int, width: int = 256, base: float = 10000.0) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine, sine (side * side, width / 2) float32: width/4 frequencies for x, then for y, row-major grid."""
    frequency = base ** (-np.arange(0, width, 4) / width)
    y, x = np.divmod(np.arange(side * side), side)
    angle = np.concatenate([np.outer(x, frequency), np.outer(y, frequency)], axis=1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def memory_attention(
    queries_bnd: np.ndarray,
    memory_bsnm: np.ndarray,
    ages_bs: np.ndarray,
    pointers_bpm: np.ndarray,
    pointer_counts_b: np.ndarray,
    key_weight_dm: np.ndarray,
    key_bias_d: np.ndarray,
    position_nm: np.ndarray,
    temporal_am: np.ndarray,
    cosine_nk: np.ndarray,
    sine_nk: np.ndarray,
) -> np.ndarray:
    """Cross-attention to a ring of remembered maps, before the value projection: (b, n, m).

        K = rotate(Wk (memory + position + temporal[age]) + bk)       for every slot with age >= 0
        K = Wk pointer + bk                                           for the first pointer_counts[b] pointer tokens
        out = softmax(rotate(queries) K^T / sqrt(d)) [memory; pointers]

    Values carry no rotation, so softmax(.) (M Wv) = (softmax(.) M) Wv: the caller projects the 64-wide result.
    """
    out = np.zeros((*queries_bnd.shape[:2], memory_bsnm.shape[3]), queries_bnd.dtype)
    for b, ages_s in enumerate(ages_bs):
        keys, values = [], []
        for s, age in enumerate(ages_s):
            if age >= 0:
                key_nd = (memory_bsnm[b, s] + position_nm + temporal_am[age]) @ key_weight_dm.T + key_bias_d
                keys.append(rotate(key_nd, cosine_nk, sine_nk))
                values.append(memory_bsnm[b, s])
        pointers = pointers_bpm[b, : pointer_counts_b[b]]
        keys.append(pointers @ key_weight_dm.T + key_bias_d)
        values.append(pointers)
        keys_nd, values_nm = np.concatenate(keys), np.concatenate(values)
        if len(keys_nd):
            query_nd = rotate(queries_bnd[b], cosine_nk, sine_nk)
            out[b] = softmax(query_nd @ keys_nd.T / math.sqrt(keys_nd.shape[1])) @ values_nm
    return out


def softmax(x: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    """Over the last axis, biased variance."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + epsilon) * weight + bias


def time_embedding(frames: int, channels: int = 256) -> np.ndarray:
    """Return (frames, channels) float32: angle 2 pi i / (T + 1e-6) of frame i >= 1; even channels sine, odd cosine."""
    angle = 2 * math.pi * np.arange(1, frames + 1) / (frames + 1e-6)
    scaled = angle[:, None] / 10000.0 ** (2 * (np.arange(channels) // 2) / channels)
    return np.where(np.arange(channels) % 2 == 0, np.sin(scaled), np.cos(scaled)).astype(np.float32)


def to_windows(x_tyxc: np.ndarray, patch: int) -> np.ndarray:
    """Partition (t, y, x, c) -> (windows, t * patch * patch, c): windows row-major, tokens frame- then row-major."""
    t, y, x, c = x_tyxc.shape
    split = x_tyxc.reshape(t, y // patch, patch, x // patch, patch, c)
    return split.transpose(1, 3, 0, 2, 4, 5).reshape(-1, t * patch * patch, c)


def from_windows(z_wnc: np.ndarray, patch: int, shape_tyxc: tuple[int, int, int, int]) -> np.ndarray:
    """Invert `to_windows`."""
    t, y, x, c = shape_tyxc
    split = z_wnc.reshape(y // patch, x // patch, t, patch, patch, c)
    return split.transpose(2, 0, 3, 1, 4, 5).reshape(shape_tyxc)


def window_attention(
    x_tyxc: np.ndarray,
    patch: int,
    time_tc: np.ndarray,
    position_pc: np.ndarray,
    norm_weight_c: np.ndarray,
    norm_bias_c: np.ndarray,
    qkv_weight: np.ndarray,
    qkv_bias: np.ndarray,
    out_weight: np.ndarray,
    out_bias: np.ndarray,
    heads: int = 8,
) -> np.ndarray:
    """Hierarchical selective attention with its residual: y = x + HSA(x), all (t, y, x, c).

        z = layer_norm(window(x) + time[frame] + position[place in the patch])     n = t * patch * patch tokens
        q, k, v = z Wqkv^T + b                                                     8 heads of 32
        HSA = unwindow(concat_h softmax(q k^T / sqrt(32)) v  Wout^T + bout)

    Wout is the attention's output projection with the linear layer that follows it, folded into one matrix.
    """
    z = to_windows(x_tyxc, patch) + np.repeat(time_tc, patch * patch, axis=0) + np.tile(position_pc, (len(time_tc), 1))
    z = layer_norm(z, norm_weight_c, norm_bias_c)
    w, n, c = z.shape
    q, k, v = (z @ qkv_weight.T + qkv_bias).reshape(w, n, 3, heads, c // heads).transpose(2, 0, 3, 1, 4)
    attended = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(c // heads)) @ v
    projected = attended.transpose(0, 2, 1, 3).reshape(w, n, c) @ out_weight.T + out_bias
    return x_tyxc + from_windows(projected, patch, x_tyxc.shape)


def window_attention_step(
    x_yxc: np.ndarray, kept_tyxc: np.ndarray, index_t: np.ndarray, patch: int, time_tc: np.ndarray, *weights: Any
) -> np.ndarray:
    """Return the newest frame x of a clip of `window_attention`, whose other frames are kept in any order.

    index_t  place of each kept frame in the clip, a row of `time_tc`
    weights  the arguments of `window_attention` behind `time_tc`
    """
    clip = np.concatenate((kept_tyxc, x_yxc[None]))
    time = np.concatenate((time_tc[index_t], time_tc[-1:]))
    result: np.ndarray = window_attention(clip, patch, time, *weights)[-1]
    return result


PRECISION_BITS = 32 - 8 - 2
"""Fixed-point bits of Pillow's byte resize (`Resample.c`): 32 less a byte of result and two of headroom."""


def pillow_taps(source: int, target: int, filter: str = "bilinear") -> tuple[np.ndarray, np.ndarray]:
    """Return Pillow's antialiased filter for one axis: first source pixel (target) and weights (target, taps), int32.

    The filter is stretched by source/target when shrinking; weights are normalised, then rounded to 2^-22. Short rows
    (at the borders) are padded with zero weights; a padded tap may lie past the end and must be clamped by the reader.
    """
    first, weight = float_taps(source, target, filter)
    fixed = np.trunc(weight * (1 << PRECISION_BITS) + np.where(weight < 0, -0.5, 0.5))
    return first, fixed.astype(np.int32)


def float_taps(source: int, target: int, filter: str = "bilinear") -> tuple[np.ndarray, np.ndarray]:
    """Return the filter of `pillow_taps` before its weights are rounded: first (target) int32, weights float64."""
    radius, kernel = {"bilinear": (1.0, _triangle), "bicubic": (2.0, _cubic)}[filter]
    scale = source / target
    stretch = max(scale, 1.0)
    support = radius * stretch
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    taps = np.arange((last - first).max())
    weight = kernel((taps + first[:, None] - centre[:, None] + 0.5) / stretch)
    weight = np.where(taps < (last - first)[:, None], weight, 0.0)
    weight /= weight.sum(axis=1, keepdims=True)
    return first.astype(np.int32), weight


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _resample_rows(x: np.ndarray, taps: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Apply one pass of Pillow's byte resize along axis 0, rounded and clipped to bytes."""
    first, weight = taps
    index = np.minimum(first[:, None] + np.arange(weight.shape[1]), len(x) - 1)
    total = np.einsum("ik,ik...->i...", weight, x[index].astype(np.int64)) + (1 << (PRECISION_BITS - 1))
    return np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)


def preprocess(
    frame_hwc: np.ndarray, resized_hw: tuple[int, int], image_size: int, table_cv: np.ndarray, filter: str = "bilinear"
) -> np.ndarray:
    """Preprocess a uint8 frame -> (3, image_size, image_size): Pillow resize (columns first), lookup, zero padding.

    table_cv (3, 256) holds the normalised value of every byte.
    """
    rows = pillow_taps(frame_hwc.shape[0], resized_hw[0], filter)
    columns = pillow_taps(frame_hwc.shape[1], resized_hw[1], filter)
    return preprocess_with_taps(frame_hwc, rows, columns, image_size, table_cv)


def preprocess_with_taps(
    frame_hwc: np.ndarray, rows: Taps, columns: Taps, image_size: int, table_cv: np.ndarray
) -> np.ndarray:
    """Apply `preprocess` with the kernel's taps: (first, weight) per axis, as `pillow_taps` returns them."""
    wide = _resample_rows(frame_hwc.swapaxes(0, 1), columns).swapaxes(0, 1)
    small = _resample_rows(wide, rows)
    out = np.zeros((3, image_size, image_size), table_cv.dtype)
    for c in range(3):
        out[c, : small.shape[0], : small.shape[1]] = table_cv[c][small[:, :, c]]
    return out


def preprocess_float(
    frame_hwc: np.ndarray, rows: Taps, columns: Taps, image_size: int, unit_v: np.ndarray, norm_2c: np.ndarray
) -> np.ndarray:
    """Apply both passes of `float_taps` in float64, each rounded to float32, then (x - mean) / std; zero outside."""
    planes = unit_v[frame_hwc].astype(np.float64)
    for axis, (first, weight) in ((1, columns), (0, rows)):
        index = np.minimum(first[:, None] + np.arange(weight.shape[1]), planes.shape[axis] - 1)
        taken = np.moveaxis(planes, axis, 0)[index]
        planes = np.moveaxis(np.einsum("nt,nt...->n...", weight, taken), 0, axis).astype(np.float32)
    out = np.zeros((3, image_size, image_size), np.float32)
    out[:, : planes.shape[0], : planes.shape[1]] = ((planes - norm_2c[0]) / norm_2c[1]).transpose(2, 0, 1)
    return out


MASK_TAPS = 4
"""Low-resolution cells that one pixel can depend on per axis: two bilinear steps touch 3, padded to a power of two."""


def band(matrix: np.ndarray) -> Taps:
    """Return a banded (target, source) matrix as taps: first source position (target,) int32, weights."""
    used = matrix != 0
    first = used.argmax(axis=1)
    taps = int((matrix.shape[1] - used[:, ::-1].argmax(axis=1) - first).max())
    index = first[:, None] + np.arange(taps)
    weight = np.take_along_axis(matrix, np.minimum(index, matrix.shape[1] - 1), axis=1)
    return first.astype(np.int32), np.where(index < matrix.shape[1], weight, 0)


def mask_taps(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a banded (target, source) matrix as first cell (target) int32 and weights (target, MASK_TAPS) float32.

    Raises ValueError when a row has entries further apart than MASK_TAPS.
    """
    first = np.minimum((matrix != 0).argmax(axis=1), max(matrix.shape[1] - MASK_TAPS, 0))
    index = np.minimum(first[:, None] + np.arange(MASK_TAPS), matrix.shape[1] - 1)
    weight = np.take_along_axis(matrix, index, axis=1)
    weight[:, 1:][index[:, 1:] == index[:, :-1]] = 0  # sources narrower than the taps
    if not np.allclose(weight.sum(axis=1), matrix.sum(axis=1), atol=1e-12):
        raise ValueError(f"a row of the {matrix.shape} matrix spans more than {MASK_TAPS} cells")
    return first.astype(np.int32), weight.astype(np.float32)


def mask_matrix(taps: tuple[np.ndarray, np.ndarray], source: int) -> np.ndarray:
    """Return the (target, source) matrix that `mask_taps` was made from, float64."""
    first, weight = taps
    matrix = np.zeros((len(first), source))
    index = np.minimum(first[:, None] + np.arange(weight.shape[1]), source - 1)
    np.add.at(matrix, (np.arange(len(first))[:, None], index), weight)
    return matrix


def postprocess(low_nss: np.ndarray, rows_hs: np.ndarray, columns_ws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low-resolution logits -> packed masks (n, ceil(H W / 8)) uint8 and stats (n, 5) int32.

        logits = rows @ low @ columns^T,  mask = logits > 0

    A stats row is area, x0, y0, x1, y1 with x1, y1 one past the last pixel; all zero for an empty mask.
    """
    masks = (rows_hs @ low_nss.astype(np.float64) @ columns_ws.T) > 0
    packed = np.packbits(masks.reshape(len(masks), -1), axis=1)
    stats = np.zeros((len(masks), 5), np.int32)
    for n, mask in enumerate(masks):
        if mask.any():
            y, x = np.nonzero(mask)
            stats[n] = len(y), x.min(), y.min(), x.max() + 1, y.max() + 1
    return packed, stats
