"""A byte frame as network input, in one launch; `reference.preprocess` and `preprocess_float` are the formulas.

Pillow resizes columns first, rounds to bytes, then rows. One program makes a tile of the result and runs the first pass
again for each row it needs: at most 2 * 1024 / 360 .. 9 rows, all from the cache, so the kernel stays bound by the 6 MB
(half) it writes: about 2 us on an H200, against a second launch and a round trip of the intermediate.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def preprocess(
    frame_ptr, row_first_ptr, row_weight_ptr, column_first_ptr, column_weight_ptr, table_ptr, out_ptr, height,
    width, resized_height, resized_width, image_size, row_taps, column_taps,
    BITS: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of columns, blocks of rows, 3 channels). frame (height, width, 3) uint8, taps from
    `reference.pillow_taps`, table (3, 256) -> out (3, image_size, image_size), zero outside the resized frame."""
    x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    y = tl.program_id(1) * BLOCK_Y + tl.arange(0, BLOCK_Y)
    channel = tl.program_id(2)
    in_x, in_y = x < resized_width, y < resized_height
    pixel = in_y[:, None] & in_x[None, :]
    half: tl.constexpr = 1 << (BITS - 1)
    top = tl.load(row_first_ptr + y, mask=in_y, other=0)
    left = tl.load(column_first_ptr + x, mask=in_x, other=0)
    total = tl.full([BLOCK_Y, BLOCK_X], half, tl.int32)
    for j in range(row_taps):
        # a tap past the border has weight zero; its address is clamped
        source_y = tl.minimum(top + j, height - 1)
        wide = tl.full([BLOCK_Y, BLOCK_X], half, tl.int32)
        for i in range(column_taps):
            source_x = tl.minimum(left + i, width - 1)
            weight = tl.load(column_weight_ptr + x * column_taps + i, mask=in_x, other=0)
            source = (source_y[:, None].to(tl.int64) * width + source_x[None, :]) * 3 + channel
            wide += weight[None, :] * tl.load(frame_ptr + source, mask=pixel, other=0).to(tl.int32)
        wide = tl.minimum(tl.maximum(wide >> BITS, 0), 255)
        total += tl.load(row_weight_ptr + y * row_taps + j, mask=in_y, other=0)[:, None] * wide
    byte = tl.minimum(tl.maximum(total >> BITS, 0), 255)
    value = tl.load(table_ptr + channel * 256 + byte, mask=pixel, other=0.0)
    out = out_ptr + (channel * image_size + y[:, None]) * image_size + x[None, :]
    inside = (y < image_size)[:, None] & (x < image_size)[None, :]
    tl.store(out, value.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def preprocess_float(
    frame_ptr, row_first_ptr, row_weight_ptr, column_first_ptr, column_weight_ptr, unit_ptr, norm_ptr, out_ptr, height,
    width, resized_height, resized_width, image_size, row_taps, column_taps,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """The same where nothing is rounded to bytes, for images: taps from `reference.float_taps`, sums in float64 as
    Pillow has them, unit (256) = byte / 255, norm (2, 3) = mean and standard deviation."""
    x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    y = tl.program_id(1) * BLOCK_Y + tl.arange(0, BLOCK_Y)
    channel = tl.program_id(2)
    in_x, in_y = x < resized_width, y < resized_height
    pixel = in_y[:, None] & in_x[None, :]
    top = tl.load(row_first_ptr + y, mask=in_y, other=0)
    left = tl.load(column_first_ptr + x, mask=in_x, other=0)
    total = tl.zeros([BLOCK_Y, BLOCK_X], tl.float64)
    for j in range(row_taps):
        source_y = tl.minimum(top + j, height - 1)
        wide = tl.zeros([BLOCK_Y, BLOCK_X], tl.float64)
        for i in range(column_taps):
            source_x = tl.minimum(left + i, width - 1)
            weight = tl.load(column_weight_ptr + x * column_taps + i, mask=in_x, other=0.0)
            source = (source_y[:, None].to(tl.int64) * width + source_x[None, :]) * 3 + channel
            byte = tl.load(frame_ptr + source, mask=pixel, other=0).to(tl.int32)
            wide += weight[None, :] * tl.load(unit_ptr + byte).to(tl.float64)
        row_weight = tl.load(row_weight_ptr + y * row_taps + j, mask=in_y, other=0.0)
        total += row_weight[:, None] * wide.to(tl.float32).to(tl.float64)
    value = tl.div_rn(total.to(tl.float32) - tl.load(norm_ptr + channel), tl.load(norm_ptr + 3 + channel))
    out = out_ptr + (channel * image_size + y[:, None]) * image_size + x[None, :]
    inside = (y < image_size)[:, None] & (x < image_size)[None, :]
    tl.store(out, tl.where(pixel, value, 0.0).to(out_ptr.dtype.element_ty), mask=inside)
