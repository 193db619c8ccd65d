"""Low-resolution logits as packed masks, boxes and areas, in one launch; `reference.postprocess` is the formula.

Two bilinear steps and a crop are two banded matrices (`reference.mask_taps`): a pixel is a sum of 4 x 4 cells, read
from a map of 256 KB that stays in the cache. The readback is one bit per pixel instead of four bytes: 0.26 MB
for 1080p, so the copy to the host, not the kernel, sets the time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def postprocess(
    low_ptr, row_first_ptr, row_weight_ptr, column_first_ptr, column_weight_ptr, packed_ptr, stats_ptr, side,
    height, width, packed_bytes,
    TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of BLOCK bytes, objects). low (n, side, side) -> packed (n, packed_bytes) uint8 as `np.packbits` has
    it, stats (n, 5) int32: area, width - x0, height - y0, x1, y1 as maxima, so zeros (from the caller) are neutral."""
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.program_id(1).to(tl.int64)
    bit = tl.arange(0, 8)
    pixel = byte[:, None] * 8 + bit[None, :]
    inside = pixel < height * width
    y, x = pixel // width, pixel % width
    top = tl.load(row_first_ptr + y, mask=inside, other=0)
    left = tl.load(column_first_ptr + x, mask=inside, other=0)
    logit = tl.zeros([BLOCK, 8], tl.float32)
    for j in tl.static_range(TAPS):
        line = tl.zeros([BLOCK, 8], tl.float32)
        source = low_ptr + (n * side + tl.minimum(top + j, side - 1)) * side
        for i in tl.static_range(TAPS):
            weight = tl.load(column_weight_ptr + x * TAPS + i, mask=inside, other=0.0)
            line += weight * tl.load(source + tl.minimum(left + i, side - 1), mask=inside, other=0.0).to(tl.float32)
        logit += tl.load(row_weight_ptr + y * TAPS + j, mask=inside, other=0.0) * line
    mask = inside & (logit > 0)
    value = tl.sum(mask.to(tl.int32) << (7 - bit)[None, :], axis=1)
    tl.store(packed_ptr + n * packed_bytes + byte, value.to(tl.uint8), mask=byte < packed_bytes)
    area = tl.sum(tl.sum(mask.to(tl.int32), axis=1), axis=0)
    if area > 0:
        stats = stats_ptr + n * 5
        tl.atomic_add(stats, area, sem="relaxed")
        tl.atomic_max(stats + 1, tl.max(tl.max(tl.where(mask, width - x, 0), axis=1), axis=0), sem="relaxed")
        tl.atomic_max(stats + 2, tl.max(tl.max(tl.where(mask, height - y, 0), axis=1), axis=0), sem="relaxed")
        tl.atomic_max(stats + 3, tl.max(tl.max(tl.where(mask, x + 1, 0), axis=1), axis=0), sem="relaxed")
        tl.atomic_max(stats + 4, tl.max(tl.max(tl.where(mask, y + 1, 0), axis=1), axis=0), sem="relaxed")
