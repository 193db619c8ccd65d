"""Postprocess: packed masks, boxes and areas against the reference; time against PyTorch's two interpolations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from runtime.imaging.upsample import MaskUpsampler
from runtime.kernels import launch, plan, reference

from .gpu_bench import Bench


def measure(
    bench: Bench, objects: int, side: int, image_size: int, crop_hw: tuple[int, int], source_hw: tuple[int, int]
) -> dict[str, Any]:
    """Measure one size of video, as JSON values."""
    low = np.random.default_rng(0).standard_normal((objects, side, side)).astype(np.float32)
    upsampler = MaskUpsampler(side, image_size, crop_hw, source_hw)
    matrices = upsampler.rows, upsampler.columns
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

    seconds, theirs = bench.seconds(lambda: (stats.zero_(), launch.run(launches))), bench.seconds(pytorch)
    times = {"seconds": seconds, "pytorch_seconds": theirs, "speedup": theirs / seconds}
    difference = int(np.abs(boxes[:, 1:] - expected_stats[:, 1:]).max())
    return {
        "objects": objects,
        "source": list(source_hw),
        **times,
        "wrong_pixels": wrong,
        "largest_box_difference": difference,
    }
