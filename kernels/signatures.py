"""C types of the arguments of every kernel, in the order of `plan.Launch.arguments`: needed to compile ahead of time.

Types of pointers are those of the arrays in a half-precision bundle, where pixels and logits are float32.
"""

from __future__ import annotations

from collections.abc import Mapping

_CLIP = ("*fp16", "*fp16", "*i64")
"""Newest map, kept maps, their places in the clip."""

ARGUMENT_TYPES: Mapping[str, tuple[str, ...]] = {
    "memory_attention_prepare": (
        *("*fp16", "*fp16", "*i32", "*fp16", "*i32"),  # queries, memory, ages, pointers, pointer counts
        *("*fp16", "*fp16", "*fp16", "*fp16"),  # key weight and bias, position, temporal embedding
        *("*fp32", "*fp32"),  # cosine, sine: half would round angles by whole positions
        *("*fp16", "*fp16", "*fp16"),  # rotated queries, keys, values
        *("i32", "i32", "i32", "i32", "fp32"),  # tokens, slots, pointers, capacity, scale
    ),
    "memory_attention_flash": (
        *("*fp16", "*fp16", "*fp16", "*i32", "*i32"),  # rotated queries, keys, values, ages, pointer counts
        *("*fp16", "*fp32", "*fp32"),  # out, partial sums, log-sum-exp
        *("i32", "i32", "i32", "i32"),  # tokens, slots, capacity, splits
    ),
    "memory_attention_combine": ("*fp32", "*fp32", "*fp16", "i32", "i32"),
    "window_attention_project": (*("*fp16",) * 8, "i32", "i32", "i32", "i32", "fp32", "fp32"),
    "window_attention_attend": (*("*fp16",) * 5, "i32", "i32", "i32", "i32"),
    "window_attention_fused": (*("*fp16",) * 10, "i32", "i32", "i32", "i32", "fp32", "fp32", "i32"),
    "window_attention_step_project": (*_CLIP, *("*fp16",) * 8, "i32", "i32", "i32", "i32", "fp32", "fp32"),
    "window_attention_step_attend": (*("*fp16",) * 6, "i32", "i32", "i32", "i32"),
    "window_attention_step_fused": (*_CLIP, *("*fp16",) * 9, "i32", "i32", "i32", "i32", "fp32", "fp32", "i32"),
    "preprocess": (
        *("*u8", "*i32", "*i32", "*i32", "*i32", "*fp32", "*fp32"),  # frame, taps of rows and columns, table, pixels
        *("i32",) * 7,
    ),
    "preprocess_float": (
        *("*u8", "*i32", "*fp64", "*i32", "*fp64"),  # frame, taps of rows and columns
        *("*fp32", "*fp32", "*fp32"),  # byte / 255, mean and standard deviation, pixels
        *("i32",) * 7,
    ),
    "postprocess": (
        *("*fp32", "*i32", "*fp32", "*i32", "*fp32"),  # logits, taps of rows and columns
        *("*u8", "*i32"),  # bits, statistics
        *("i32",) * 4,
    ),
}
