"""The runtime against plain PyTorch on the same clip, alternating in one process; only the ratio is meaningful.

Without `--checkpoint` PyTorch's modules have the bundle's sizes and random weights, which take the same time. With the
checkpoint that the bundle was exported from, the masks are compared as well.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

import runtime
from export.networks import network
from runtime.metrics import clip_jaccard

from .bench_clip import clip, play, sentences
from .tables import PYTORCH


@pytest.mark.parametrize("how", PYTORCH)
def test_sentence(benchmark, info, loaded, bundle, how, request):
    """One sentence through `--windows` windows."""
    prompts = sentences(loaded, 1)
    model, plain = pytorch(bundle, "samwise", how, request)
    frames = clip(request.config.option.windows * loaded.networks.text_video.window)
    tokens = list(prompts[0].tokens or ())

    def theirs():
        return plain(model, bundle.manifest.networks, frames, tokens)

    compare(benchmark, info, lambda: play(loaded, prompts, frames), theirs, len(frames), how, request.config.option)


@pytest.mark.parametrize("how", PYTORCH)
def test_click(benchmark, info, loaded, bundle, how, request):
    """One object, clicked on the first of eight frames per window of `--windows`."""
    pytest.importorskip("torch")
    from export.verify.parity_clip import CLICK

    follow_clicks(benchmark, info, loaded, bundle, how, request, [CLICK])


@pytest.mark.parametrize("how", PYTORCH)
def test_four_clicks(benchmark, info, loaded, bundle, how, request):
    """Four objects as one batch, else as `test_click`."""
    follow_clicks(benchmark, info, loaded, bundle, how, request, [(0.2, 0.3), (0.4, 0.3), (0.6, 0.6), (0.8, 0.8)])


def follow_clicks(benchmark, info, loaded, bundle, how, request, clicks) -> None:
    """Follow an object for each of `clicks`, fractions of width and height. The length of the clip is known in advance,
    as in PyTorch's schedule: SAM 2.1 normalises the distance of pointers by it."""
    model, plain = pytorch(bundle, "sam2", how, request)
    frames = clip(8 * request.config.option.windows)

    def ours() -> list[runtime.Result]:
        with loaded.video(frames, fill_hole_area=0) as video:
            for obj, click in enumerate(clicks, 1):
                video.add_points(0, obj, [click], [1], normalized=True)
            return list(video.propagate())

    def theirs():
        return plain(model, bundle.manifest.networks, frames, clicks=clicks)

    compare(benchmark, info, ours, theirs, len(frames), how, request.config.option)


def pytorch(bundle, kind: str, how: str, request):
    """Return (modules of the bundle's sizes or of `--checkpoint`, plain schedule); skip bundles without a `kind`."""
    if how not in request.config.option.pytorch:
        pytest.skip(f"needs --pytorch {how}")
    torch = pytest.importorskip("torch")
    from export.checkpoints.common import config_from

    name = bundle.manifest.network_names
    if name not in (kind, "samwise+sam2") or bundle.manifest.provenance.get("config") is None:
        pytest.skip(f"{name} is not {kind}, or does not say how its modules were sized")
    if request.config.option.checkpoint:
        model = network(name).load(request.config.option.checkpoint)
    else:
        from export.models.sam2 import Sam2, Sam2Config
        from export.models.samwise import Samwise, SamwiseConfig

        modules, config = (Sam2, Sam2Config) if name == "sam2" else (Samwise, SamwiseConfig)
        model = modules(config_from(config, bundle.manifest.provenance["config"]))
    model = model.eval()
    if how == "compiled":
        compile_parts(torch, model, kind)
    return model, network(kind).clip


def compile_parts(torch, model, kind: str) -> None:
    """Apply `torch.compile` to the slow parts with dynamic sizes: a memory that fills must not recompile."""
    sam = model.sam
    if kind == "samwise":
        parts = [(model, name) for name in ("encode_clip", "attend_memory", "decode", "encode_memory")]
    else:
        modules = (sam.sam_mask_decoder, sam.memory_encoder, sam.memory_attention)
        parts = [(sam.trunk, "run"), *((module, "forward") for module in modules)]
    for owner, name in parts:
        setattr(owner, name, torch.compile(getattr(owner, name), dynamic=True))


def compare(benchmark, info, ours, theirs, frames: int, how: str, options) -> None:
    """Time both in turn, `--rounds` times after a warm-up."""
    import torch

    seconds: dict[str, list[float]] = {"runtime": [], "pytorch": []}
    overlap: list[float] = []

    def pair() -> None:
        start = time.perf_counter()
        results = ours()
        middle = time.perf_counter()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=how == "bfloat16"):
            masks = [mask for mask, *_ in theirs()]
        seconds["runtime"].append(middle - start)
        seconds["pytorch"].append(time.perf_counter() - middle)
        overlap[:] = [clip_jaccard(np.asarray(r.masks), mask) for r, mask in zip(results, masks, strict=True)]

    warmup = int(options.rounds > 1)
    benchmark.pedantic(pair, rounds=options.rounds, warmup_rounds=warmup)
    here, there = (values[warmup:] for values in (seconds["runtime"], seconds["pytorch"]))
    info(
        frames=frames,
        pytorch=how,
        runtime_seconds=here,
        pytorch_seconds=there,
        pytorch_over_runtime=float(np.median(np.divide(there, here))),
        frames_per_second=frames / float(np.median(here)),
        threads_of_pytorch=torch.get_num_threads(),
    )
    if options.checkpoint:
        info(worst_iou=min(overlap), mean_iou=float(np.mean(overlap)))
