"""Frames and masks of every network by compiled kernels, compared with the CPU: without PyTorch, as in a deployment."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from runtime.device.array import DeviceArray
from runtime.device.cubin import Kernels
from runtime.device.cuda import Cuda
from runtime.device.inputs import InputBlock
from runtime.imaging.gpu import DeviceFrames, DeviceMasks, DeviceUpsampler, Size
from runtime.imaging.preprocess import preprocess
from runtime.imaging.upsample import CornerAlignedUpsampler, SeparableUpsampler, square_upsampler

from .gpu_run import Run

NORMALIZATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FrameRules = Sequence[tuple[str, str, int]]
MaskRules = Sequence[tuple[str, int]]
OBJECTS = 3
ROUNDING = 1e-6
"""Largest difference of pixels that are not rounded to bytes (`float`); the others have equal bits."""
FEW = 1e-5
"""Share of pixels whose logit may be rounded to the other side of 0."""


def compare(
    run: Run, device: Cuda, kernels: Kernels, sources: Sequence[Size], frames: FrameRules, masks: MaskRules
) -> list[str]:
    """Compare the rules of `frames` (name, resample, side) and `masks` (name, low-res side) at each size of a video.

    Returns the names of what differs from the CPU. What there is no time for is left out.
    """
    wrong = []
    for source in sources:
        for name, resample, side in frames:
            what = f"frame_{name}_{source[0]}p"
            if run.has_time(2, what):
                found = run.put(what, frame(device, kernels, source, resample, side))
                wrong += [what] * (found["largest_difference"] > (ROUNDING if resample == "float" else 0))
        for name, side in masks:
            what = f"masks_{name}_{source[0]}p"
            if run.has_time(2, what):
                found = run.put(what, mask(device, kernels, upsampler(name, side, source)))
                wrong += [what] * (found["wrong_pixels"] > FEW * OBJECTS * source[0] * source[1])
    return wrong


def frame(device: Cuda, kernels: Kernels, source: Size, resample: str, side: int) -> dict[str, Any]:
    """Return the largest difference of a frame as network input, and seconds with its upload and a wait."""
    pixels = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    ours = DeviceFrames(device, kernels, source, (side, side), side, *NORMALIZATION, resample)
    inputs, out = InputBlock(device), device.empty((3, side, side), "float32")

    def on_device() -> None:
        ours.enqueue(cast(DeviceArray, inputs.upload({"frame": pixels})["frame"]), out)
        device.wait()

    expected = np.empty((3, side, side), np.float32)
    cpu_seconds = timed(lambda: preprocess(pixels, (side, side), side, *NORMALIZATION, expected, resample))
    times = {"seconds": timed(on_device), "cpu_seconds": cpu_seconds}
    return {"largest_difference": float(np.abs(device.download(out) - expected).max()), **times}


def mask(device: Cuda, kernels: Kernels, rule: SeparableUpsampler) -> dict[str, Any]:
    """Return the pixels that differ from masks of the CPU, and seconds with the upload of logits and a wait."""
    low = np.random.default_rng(0).standard_normal((OBJECTS, rule.rows.shape[1], rule.columns.shape[1]))
    low = low.astype(np.float32)
    ours, found = DeviceUpsampler(DeviceMasks(device, kernels, rule)), {}

    def on(side: str, masks: Callable[[np.ndarray], np.ndarray]) -> float:
        return timed(lambda: found.__setitem__(side, masks(low)))

    times = {"seconds": on("device", ours.masks), "cpu_seconds": on("cpu", rule.masks)}
    return {"wrong_pixels": int((found["device"] != found["cpu"]).sum()), **times}


def upsampler(name: str, side: int, source: Size) -> SeparableUpsampler:
    """Return what makes masks of the CPU: ReferSAM's corners are aligned."""
    return CornerAlignedUpsampler(side, source) if name == "refersam" else square_upsampler(side, source)


def timed(work: Callable[[], Any], repeats: int = 3) -> float:
    """Return the least seconds of some calls, of which the first loads and allocates."""
    least = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - start)
    return least
