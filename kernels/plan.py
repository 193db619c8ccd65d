"""Launch plans of all ops: kernel, grid, arguments and constants. Needs no Triton: the runtime, which launches compiled
kernels, and the Triton launcher share these functions.

Pointer arguments (torch tensors, device arrays) are passed through as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from . import reference

Size = tuple[int, int]
"""Height and width, or another pair of rows and columns."""
Taps = tuple[Any, Any]
"""First source position and weights of one axis, as arrays on the device."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch. `arguments` stand in the kernel's order, without its constants."""

    kernel: str
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True, slots=True)
class FlashConfig:
    """Block sizes of the flash launch. `splits` None: as many as fill the device (`choose_splits`)."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False
    specialize: bool = False
    splits: int | None = None


@dataclass(frozen=True, slots=True)
class WindowConfig:
    """Block sizes. `project` and `attend` of the two-launch form as (rows, columns, warps, stages); `fused` as (rows,
    warps, stages), with rows for a window of `FUSED_TOKENS`."""

    project: tuple[int, int, int, int] = (64, 64, 4, 2)
    attend: tuple[int, int, int, int] = (64, 64, 4, 2)
    fused: tuple[int, int, int] = (32, 8, 1)


SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory that one program may take, by compute capability (CUDA programming guide)."""
SMALL = tuple(capability for capability, size in SHARED_LIMIT.items() if size < 100 << 10)

FLASH = {
    # queries 64 x 256 (32 KB) and two stages of keys 32 x 256 (16 KB) and values
    **dict.fromkeys(SMALL, FlashConfig(64, 32, 4, 2)),
    80: FlashConfig(128, 32, 8, 3),
    # 128 keys: with 64, products of 16 channels read 128 bytes of shared memory per clock, which is all there is
    90: FlashConfig(128, 128, 8, 2),
}
"""By compute capability; the largest that fits shared memory, until `benchmarks.gpu_check` has measured better."""

FLASH_TMA = {90: FlashConfig(128, 128, 8, 2, tma=True)}
"""Where blocks of keys and values can come through tensor descriptors, for which a program needs scratch: checked like
`FLASH`, and to be put in its place once `benchmarks.gpu_check` has measured that it is faster."""

WINDOW = {
    **dict.fromkeys(SMALL, WindowConfig(project=(64, 32, 4, 2))),
    80: WindowConfig(attend=(64, 32, 4, 2)),  # 64 columns spill 8 bytes there (Triton 3.6)
    90: WindowConfig(),
}
"""By compute capability. Columns of `attend` divide 64, so that no window of 8 x 8 patches needs a mask."""
HEAD = 32
LOG2_E = math.log2(math.e)
FUSED_TOKENS = 32
"""Longest window held whole by one program: the registers of 64 rows spill on every target."""


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_two(n: int, least: int = 1) -> int:
    return max(least, 1 << (n - 1).bit_length())


def choose_splits(blocks: int, multiprocessors: int, most: int = 16) -> int:
    """Choose the splits of the keys per block of queries: the fewest of those that take the least time in full waves.

    A wave of programs costs 1 / splits; 2 % per split stand for the merge.
    """
    return min(range(1, most + 1), key=lambda s: (cdiv(blocks * s, multiprocessors) / s * (1 + 0.02 * (s - 1)), s))


@dataclass(frozen=True, slots=True)
class MemorySizes:
    """objects B, tokens N of a map, slots S and pointer tokens P that the pool can hold, widths."""

    objects: int
    tokens: int
    slots: int
    pointers: int
    width: int = 256
    memory_width: int = 64
    most_slots: int = 0
    """Slots that the kernels are compiled for, where that is more than there are now: the memory is still filling."""

    @property
    def capacity(self) -> int:
        """Rows of keys of an object, in full."""
        return self.slots * self.tokens + self.pointers

    @property
    def slots_padded(self) -> int:
        """Slots that the kernels are compiled for, as a power of two."""
        return power_of_two(max(self.slots, self.most_slots))

    def scratch(self, splits: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Scratch arrays by name: shape and dtype; "same" is the dtype of the memory."""
        b, n, d, m = self.objects, self.tokens, self.width, self.memory_width
        return {
            "rotated": ((b, n, d), "same"),
            "keys": ((b, self.capacity, d), "same"),
            "values": ((b, self.capacity, m), "same"),
            "partial": ((b, splits, n, m), "float32"),
            "lse": ((b, splits, n), "float32"),
        }


def flash_config(
    capability: int, sizes: MemorySizes, multiprocessors: int, config: FlashConfig | None = None, itemsize: int = 2
) -> FlashConfig:
    """Return the configuration for a device, with the number of splits settled."""
    config = config or FLASH[capability]
    if itemsize == 4:  # float32 is for checks: blocks that fit everywhere
        config = replace(config, block_m=32, block_n=32, warps=4, stages=1, tma=False, specialize=False)
    splits = config.splits or choose_splits(sizes.objects * cdiv(sizes.tokens, config.block_m), multiprocessors)
    return replace(config, splits=splits)


def memory_attention(
    inputs: Mapping[str, Any], scratch: Mapping[str, Any], out: Any, sizes: MemorySizes, config: FlashConfig
) -> list[Launch]:
    """Plan `kernels/memory_attention.py`; `inputs` named as in `reference.memory_attention`, without shape suffixes."""
    launches = [_prepare(inputs, scratch, sizes), _flash(inputs, scratch, out, sizes, config)]
    if config.splits == 1:
        return launches
    arguments = (scratch["partial"], scratch["lse"], out, sizes.tokens, config.splits)
    grid = (cdiv(sizes.tokens, 32), sizes.objects, 1)
    constants = {"M": sizes.memory_width, "BLOCK_T": 32}
    return [*launches, Launch("memory_attention_combine", grid, arguments, constants, 4, 1)]


def _prepare(inputs: Mapping[str, Any], scratch: Mapping[str, Any], sizes: MemorySizes) -> Launch:
    names = ("queries", "memory", "ages", "pointers", "pointer_counts", "key_weight", "key_bias")
    tables = ("position", "temporal", "cosine", "sine")
    arrays = [*(inputs[name] for name in (*names, *tables)), scratch["rotated"], scratch["keys"], scratch["values"]]
    numbers = (sizes.tokens, sizes.slots, sizes.pointers, sizes.capacity, LOG2_E / math.sqrt(sizes.width))
    block_t = 64
    grid = (cdiv(max(sizes.tokens, sizes.pointers), block_t), sizes.slots + 2, sizes.objects)
    constants = {"D": sizes.width, "M": sizes.memory_width, "BLOCK_T": block_t, "SLOTS_PADDED": sizes.slots_padded}
    return Launch("memory_attention_prepare", grid, (*arrays, *numbers), constants, 8, 1)


def _flash(
    inputs: Mapping[str, Any], scratch: Mapping[str, Any], out: Any, sizes: MemorySizes, config: FlashConfig
) -> Launch:
    arrays = [scratch[name] for name in ("rotated", "keys", "values")]
    arrays += [inputs["ages"], inputs["pointer_counts"], out, scratch["partial"], scratch["lse"]]
    numbers = (sizes.tokens, sizes.slots, sizes.capacity, config.splits)
    constants = {
        "D": sizes.width,
        "M": sizes.memory_width,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "STAGES": config.stages,
        "TMA": config.tma,
        "SPECIALIZE": config.specialize,
        "SLOTS_PADDED": sizes.slots_padded,
    }
    assert config.splits is not None, "settled by `flash_config`"
    grid = (cdiv(sizes.tokens, config.block_m), config.splits, sizes.objects)
    return Launch("memory_attention_flash", grid, (*arrays, *numbers), constants, config.warps, config.stages)


@dataclass(frozen=True, slots=True)
class WindowSizes:
    """frames T, height, width of the map (multiples of `patch`), channels."""

    frames: int
    height: int
    width: int
    patch: int
    channels: int = 256

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.frames * self.patch * self.patch

    @property
    def windows(self) -> int:
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def fused(self) -> bool:
        return self.length <= FUSED_TOKENS

    def scratch(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Scratch arrays by name: shape and dtype. Empty when one program holds a window."""
        shape = (3, self.windows, self.channels // HEAD, self.length, HEAD)
        return {} if self.fused else {"qkv": (shape, "same")}


def window_attention(
    inputs: Mapping[str, Any],
    scratch: Mapping[str, Any],
    out: Any,
    sizes: WindowSizes,
    config: WindowConfig,
    epsilon: float = 1e-5,
) -> list[Launch]:
    """Plan `kernels/window_attention.py`; `inputs` named as in `reference.window_attention`, without shape suffixes."""
    names = ("x", "time", "position", "norm_weight", "norm_bias", "qkv_weight", "qkv_bias")
    norm = tuple(inputs[name] for name in names)
    projection = (inputs["out_weight"], inputs["out_bias"], out)
    common = (sizes.frames, sizes.height, sizes.width, sizes.windows)
    scale, constants = LOG2_E / math.sqrt(HEAD), {"C": sizes.channels, "HEAD": HEAD, "PATCH": sizes.patch}
    if sizes.fused:
        rows, warps, stages = config.fused
        group = rows // sizes.length
        arguments = (*norm, *projection, *common, scale, epsilon, group)
        grid = (cdiv(sizes.windows, group), 1, 1)
        return [Launch("window_attention_fused", grid, arguments, constants | {"ROWS": rows}, warps, stages)]
    rows, columns, *project = config.project
    blocks: dict[str, Any] = {"BLOCK_T": rows, "BLOCK_C": columns}
    grid = (cdiv(sizes.windows * sizes.length, rows), 1, 1)
    arguments = (*norm, scratch["qkv"], *common, scale, epsilon)
    first = Launch("window_attention_project", grid, arguments, constants | blocks, *project)
    rows, columns, warps, stages = config.attend
    even = sizes.length % columns == 0
    blocks = {"BLOCK_M": rows, "BLOCK_N": columns, "EVEN": even, "STAGES": stages}
    grid, arguments = (cdiv(sizes.length, rows), sizes.windows, 1), (inputs["x"], scratch["qkv"], *projection, *common)
    return [first, Launch("window_attention_attend", grid, arguments, constants | blocks, warps, stages)]


def preprocess(
    frame: Any,
    rows: Taps,
    columns: Taps,
    table: Any,
    out: Any,
    source: Size,
    resized: Size,
    image_size: int,
    taps: Size,
) -> list[Launch]:
    """Plan `kernels/preprocess.py`. rows, columns: of `reference.pillow_taps`; taps: their numbers."""
    arguments = (frame, *rows, *columns, table, out, *source, *resized, image_size, *taps)
    return [_pixels("preprocess", image_size, arguments, {"BITS": reference.PRECISION_BITS})]


def preprocess_float(
    frame: Any,
    rows: Taps,
    columns: Taps,
    unit: Any,
    norm: Any,
    out: Any,
    source: Size,
    resized: Size,
    image_size: int,
    taps: Size,
) -> list[Launch]:
    """Plan `kernels/preprocess.py` without rounding to bytes. rows, columns: of `reference.float_taps`."""
    arguments = (frame, *rows, *columns, unit, norm, out, *source, *resized, image_size, *taps)
    return [_pixels("preprocess_float", image_size, arguments, {})]


def _pixels(kernel: str, image_size: int, arguments: tuple[Any, ...], constants: dict[str, Any]) -> Launch:
    """Cut the pixels of the network's input, three colors, into blocks."""
    block_y, block_x = 4, 128
    grid = (cdiv(image_size, block_x), cdiv(image_size, block_y), 3)
    return Launch(kernel, grid, arguments, constants | {"BLOCK_Y": block_y, "BLOCK_X": block_x}, 4, 1)


def postprocess(
    low: Any, rows: Taps, columns: Taps, packed: Any, stats: Any, objects: int, side: int, source: Size
) -> list[Launch]:
    """Plan `kernels/postprocess.py`. rows, columns: of `reference.mask_taps`; stats must hold zeros."""
    block, size = 128, cdiv(source[0] * source[1], 8)
    arguments = (low, *rows, *columns, packed, stats, side, *source, size)
    constants = {"TAPS": reference.MASK_TAPS, "BLOCK": block}
    return [Launch("postprocess", (cdiv(size, block), objects, 1), arguments, constants, 4, 1)]


def boxes(stats_n5: Any, source_hw: Size) -> Any:
    """Raw stats of the kernel -> area, x0, y0, x1, y1 as in `reference.postprocess` (numpy or any array alike)."""
    height, width = source_hw
    result = stats_n5.copy()
    filled = stats_n5[:, 0] > 0
    result[:, 1] = (width - stats_n5[:, 1]) * filled
    result[:, 2] = (height - stats_n5[:, 2]) * filled
    return result
