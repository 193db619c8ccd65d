"""Configurations of kernels that `benchmarks.gpu_check` measures on a device."""

from __future__ import annotations

from .plan import FLASH, SHARED_LIMIT, WINDOW, FlashConfig, WindowConfig

FLASH_CANDIDATES = (
    FlashConfig(128, 64, 8, 2),
    FlashConfig(128, 64, 8, 3),
    FlashConfig(128, 128, 8, 2),
    FlashConfig(128, 32, 8, 4),
    FlashConfig(128, 64, 8, 3, tma=True),
    FlashConfig(128, 64, 8, 4, tma=True),
    FlashConfig(128, 128, 8, 2, tma=True),
    # two programs per multiprocessor: one takes the softmax while the other multiplies
    FlashConfig(64, 64, 4, 2, splits=4),
    FlashConfig(64, 64, 4, 2, tma=True, splits=4),
    FlashConfig(64, 32, 4, 4, splits=4),
    FlashConfig(64, 64, 4, 2, tma=True, specialize=True, splits=4),
)
"""All fit the 227 KB of sm_90 and none spills registers (ptxas 12.8, Triton 3.6); 128 queries with 4
warps and 256 queries with 8 do."""

WINDOW_CANDIDATES = (
    WindowConfig((64, 64, 4, 2), (64, 64, 4, 2), (32, 8, 1)),
    WindowConfig((128, 64, 8, 2), (128, 64, 8, 2), (32, 8, 2)),
    WindowConfig((128, 128, 8, 2), (64, 32, 4, 2), (32, 8, 1)),
    WindowConfig((128, 32, 8, 3), (128, 32, 8, 2), (32, 8, 2)),
    WindowConfig((64, 32, 4, 3), (64, 64, 4, 3), (32, 8, 1)),
    WindowConfig((128, 64, 8, 3), (64, 64, 4, 1), (32, 8, 2)),
)
"""`benchmarks.gpu_check` picks the best of each column. `fused` with more rows or other warps spills everywhere."""


def flash_shared(config: FlashConfig, capability: int, width: int = 256, memory_width: int = 64) -> int:
    """Return bytes of shared memory of the flash launch in half: queries, and a block of keys and values per stage.

    Products of sm_90 read shared memory while later blocks arrive; on others one block less is under way.
    """
    blocks = config.stages - (capability < 90 or capability >= 120)
    return 2 * (config.block_m * width + blocks * config.block_n * (width + memory_width))


def flash_candidates(capability: int) -> tuple[FlashConfig, ...]:
    """Return what is worth measuring on a device: the configuration that ships, then all others that can run there."""
    shipped, limit = FLASH.get(capability, FLASH[80]), SHARED_LIMIT.get(capability, min(SHARED_LIMIT.values()))
    fits = [c for c in FLASH_CANDIDATES if flash_shared(c, capability) <= limit and (capability >= 90 or not c.tma)]
    return shipped, *(c for c in fits if c != shipped)


def window_candidates(capability: int) -> tuple[WindowConfig, ...]:
    """Return what is worth measuring on a device: the configuration that ships, then all others."""
    shipped = WINDOW.get(capability, WINDOW[80])
    return shipped, *(c for c in WINDOW_CANDIDATES if c != shipped)
