"""Launch plan of window attention for the newest frame of a clip (low latency); see `plan.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .plan import HEAD, LOG2_E, Launch, WindowConfig, WindowSizes, cdiv


def step_scratch(sizes: WindowSizes) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the scratch arrays of `window_attention_step`: keys and values of all frames, queries of the newest."""
    windows, heads = sizes.windows, sizes.channels // HEAD
    queries, keys = (windows, heads, sizes.patch**2, HEAD), (2, windows, heads, sizes.length, HEAD)
    return {} if sizes.fused else {"q": (queries, "same"), "kv": (keys, "same")}


def window_attention_step(
    inputs: Mapping[str, Any], scratch: Mapping[str, Any], out: Any, sizes: WindowSizes, config: WindowConfig
) -> list[Launch]:
    """Plan `kernels/window_attention_step.py`: the newest frame `x` behind `kept` ones, at places `index` of a clip."""
    names = ("x", "kept", "index", "time", "position", "norm_weight", "norm_bias", "qkv_weight", "qkv_bias")
    norm = tuple(inputs[name] for name in names)
    projection = (inputs["out_weight"], inputs["out_bias"], out)
    kept, place, common = sizes.frames - 1, sizes.patch**2, (sizes.height, sizes.width, sizes.windows)
    scale, constants = LOG2_E / math.sqrt(HEAD), {"C": sizes.channels, "HEAD": HEAD, "PATCH": sizes.patch}
    if sizes.fused:
        rows, warps, stages = config.fused
        arguments = (*norm, *projection, kept, *common, scale, 1e-5, rows // sizes.length)
        grid = (cdiv(sizes.windows, rows // sizes.length), 1, 1)
        return [Launch("window_attention_step_fused", grid, arguments, constants | {"ROWS": rows}, warps, stages)]
    rows, columns, *project = config.project
    blocks = constants | {"BLOCK_T": rows, "BLOCK_C": columns}
    grid, scratches = (cdiv(sizes.windows * place, rows), sizes.frames, 1), (scratch["q"], scratch["kv"])
    arguments = (*norm, *scratches, kept, *common, scale, 1e-5)
    first = Launch("window_attention_step_project", grid, arguments, blocks, *project)
    rows, columns, warps, stages = config.attend
    rows, columns = min(rows, max(16, place)), min(columns, 32)  # a product has 16 rows; 64 columns spill on sm_120
    blocks = constants | {"BLOCK_M": rows, "BLOCK_N": columns, "EVEN": sizes.length % columns == 0, "STAGES": stages}
    arguments = (inputs["x"], *scratches, *projection, sizes.frames, *common)
    grid = (cdiv(place, rows), sizes.windows, 1)
    return [first, Launch("window_attention_step_attend", grid, arguments, blocks, warps, stages)]
