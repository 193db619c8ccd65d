"""Preprocess: bit equality with the CPU path, time, and rate of the bytes it must move."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from runtime.imaging.preprocess import Normalization
from runtime.kernels import launch, plan, reference

from .gpu_bench import Bench


def measure(bench: Bench, source_hw: tuple[int, int], resized_hw: tuple[int, int], image_size: int) -> dict[str, Any]:
    """Measure one frame size, as JSON values."""
    frame = np.random.default_rng(0).integers(0, 256, (*source_hw, 3), dtype=np.uint8)
    table = Normalization.of([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).table_cv
    rows, columns = (reference.pillow_taps(a, b) for a, b in zip(source_hw, resized_hw, strict=True))
    on_device = [[torch.tensor(a, device=bench.device) for a in taps] for taps in (rows, columns)]
    out = torch.full((3, image_size, image_size), float("nan"), device=bench.device, dtype=torch.float16)
    arrays = (torch.tensor(frame, device=bench.device), *on_device, torch.tensor(table, device=bench.device), out)
    taps = rows[1].shape[1], columns[1].shape[1]
    launches = plan.preprocess(*arrays, source_hw, resized_hw, image_size, taps)
    launch.run(launches)
    expected = reference.preprocess(frame, resized_hw, image_size, table).astype(np.float16)
    seconds = bench.seconds(lambda: launch.run(launches))
    return {
        "source": list(source_hw),
        "resized": list(resized_hw),
        "seconds": seconds,
        "equal": bool(np.array_equal(out.cpu().numpy(), expected)),
        "gbytes_per_second": (frame.nbytes + out.numel() * 2) / seconds / 1e9,
    }
