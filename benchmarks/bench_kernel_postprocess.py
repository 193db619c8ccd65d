"""Postprocess: packed masks, boxes and areas against the reference; time against PyTorch's two interpolations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from runtime.kernels import launch, plan, reference

from .gpu_bench import Bench


def bilinear(source: int, target: int) -> np.ndarray:
    """Return (target, source) weights of one axis, align_corners false."""
    position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    left = np.minimum(position.astype(int), source - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), left), 1 - (position - left))
    np.add.at(matrix, (np.arange(target), np.minimum(left + 1, source - 1)), position - left)
    return matrix


def measure(
    bench: Bench, objects: int, side: int, image_size: int, crop_hw: tuple[int, int], source_hw: tuple[int, int]
) -> dict[str, Any]:
    """Measure one size of video, as JSON values."""
    low = np.random.default_rng(0).standard_normal((objects, side, side)).astype(np.float32)
    first = bilinear(side, image_size)
    matrices = [bilinear(crop, full) @ first[:crop] for crop, full in zip(crop_hw, source_hw, strict=True)]
    taps = [[torch.tensor(a, device=bench.device) for a in reference.mask_taps(m)] for m in matrices]
    packed = torch.zeros((objects, plan.cdiv(source_hw[0] * source_hw[1], 8)), dtype=torch.uint8, device=bench.device)
    stats = torch.zeros((objects, 5), dtype=torch.int32, device=bench.device)
    logits = torch.tensor(low, device=bench.device)
    launches = plan.postprocess(logits, *taps, packed, stats, objects, side, source_hw)
    launch.run(launches)
    expected, expected_stats = reference.postprocess(low, *matrices)
    wrong = int(np.unpackbits(packed.cpu().numpy() ^ expected).sum())
    boxes = plan.boxes(stats.cpu().numpy(), source_hw)

    def pytorch() -> torch.Tensor:
        wide = F.interpolate(logits[:, None], (image_size, image_size), mode="bilinear")
        return F.interpolate(wide[:, :, : crop_hw[0], : crop_hw[1]], source_hw, mode="bilinear") > 0

    seconds = bench.seconds(lambda: (stats.zero_(), launch.run(launches)))
    theirs = bench.seconds(pytorch)
    return {
        "objects": objects,
        "source": list(source_hw),
        "seconds": seconds,
        "pytorch_seconds": theirs,
        "speedup": theirs / seconds,
        "wrong_pixels": wrong,
        "largest_box_difference": int(np.abs(boxes[:, 1:] - expected_stats[:, 1:]).max()),
    }
