"""The same clip here and in plain PyTorch, alternating in one process; only the ratio is worth quoting.

Without `--checkpoint` PyTorch's modules have the bundle's sizes and random weights, which take as long. With the checkpoint
that the bundle was exported from, the masks are compared as well.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

import runtime
from runtime.metrics import clip_jaccard

from .bench_clip import clip, play, sentences


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_sentence(benchmark, info, loaded, bundle, compiled, request):
    """One sentence through `--windows` windows."""
    prompts = sentences(loaded, 1)
    model, plain = pytorch(bundle, "samwise", compiled, request)
    frames = clip(request.config.option.windows * loaded.network("open", "follow sentences").window)
    compare(benchmark, info, lambda: play(loaded, prompts, frames),
            lambda: plain(model, bundle.manifest.settings, frames, list(prompts[0].tokens)), len(frames),
            compiled, request.config.option)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_click(benchmark, info, loaded, bundle, compiled, request):
    """One object, clicked on the first of eight frames per window of `--windows`."""
    model, plain = pytorch(bundle, "sam2", compiled, request)
    from export.clips import CLICK

    frames = clip(8 * request.config.option.windows)
    click = runtime.Points([CLICK], [1], normalized=True)

    def ours() -> list[runtime.Result]:
        with loaded.session(fill_hole_area=0) as session:
            return [r for t, frame in enumerate(frames) for r in session.push(frame, {1: click} if t == 0 else None)]

    compare(benchmark, info, ours, lambda: plain(model, bundle.manifest.settings, frames), len(frames),
            compiled, request.config.option)


def pytorch(bundle, kind: str, compiled: bool, request):
    """(modules of the bundle's sizes or of `--checkpoint`, plain schedule); skips where there is nothing to compare."""
    if compiled and not request.config.option.compiled:
        pytest.skip("asked for by --compiled")
    torch = pytest.importorskip("torch")
    from export import models, network
    from export.checkpoints import config_from

    name = bundle.manifest.model
    if name not in (kind, "samwise+sam2") or bundle.manifest.provenance.get("config") is None:
        pytest.skip(f"{name} is not {kind}, or does not say how its modules were sized")
    if request.config.option.checkpoint:
        model = models.network(name).load(request.config.option.checkpoint)
    else:
        from export.models.sam2 import Sam2, Sam2Config
        from export.models.samwise import Samwise, SamwiseConfig

        modules, config = (Sam2, Sam2Config) if name == "sam2" else (Samwise, SamwiseConfig)
        model = modules(config_from(config, bundle.manifest.provenance["config"]))
    model = model.eval()
    if compiled:
        compile_parts(torch, model, kind)
    plain = network.CLIPS.get(kind) or models.network(kind).clip
    return model, plain


def compile_parts(torch, model, kind: str) -> None:
    """`torch.compile` on what a frame spends its time in, sizes left free: a memory that fills must not recompile."""
    sam = model.sam
    if kind == "samwise":
        parts = [(model, name) for name in ("encode_clip", "attend_memory", "decode", "remember")]
    else:
        parts = [(sam.trunk, "run"), (sam.sam_mask_decoder, "forward"), (sam.memory_encoder, "forward"),
                 (sam.memory_attention, "forward")]
    for owner, name in parts:
        setattr(owner, name, torch.compile(getattr(owner, name), dynamic=True))


def compare(benchmark, info, ours, theirs, frames: int, compiled: bool, options) -> None:
    """Both in turn, `--rounds` times after a warm-up."""
    import torch

    seconds: dict[str, list[float]] = {"runtime": [], "pytorch": []}
    overlap: list[float] = []

    def pair() -> None:
        start = time.perf_counter()
        results = ours()
        middle = time.perf_counter()
        with torch.inference_mode():
            masks = [mask for mask, *_ in theirs()]
        seconds["runtime"].append(middle - start)
        seconds["pytorch"].append(time.perf_counter() - middle)
        overlap[:] = [clip_jaccard(np.asarray(r.masks), mask) for r, mask in zip(results, masks, strict=True)]

    warmup = int(options.rounds > 1)
    benchmark.pedantic(pair, rounds=options.rounds, warmup_rounds=warmup)
    here, there = (values[warmup:] for values in (seconds["runtime"], seconds["pytorch"]))
    info(frames=frames, compiled=compiled, runtime_seconds=here, pytorch_seconds=there,
         pytorch_over_runtime=float(np.median(np.divide(there, here))), frames_per_second=frames / float(np.median(here)),
         threads_of_pytorch=torch.get_num_threads())
    if options.checkpoint:
        info(worst_iou=min(overlap))
