"""Sections of `benchmarks.gpu_check` that run SAMWISE base+ in PyTorch: the clip of `gpu_base`, eager and compiled.

The modules have the published sizes and random weights, which take the same time; bfloat16 autocast is that of the
official code.
"""

from __future__ import annotations

import time
from typing import Any

from .gpu_base import clip, prompts_of
from .gpu_run import Run
from .gpu_sizes import sizes


def pytorch_eager(run: Run) -> None:
    """Time the plain schedule of `export.verify.references`."""
    model, networks = network_of(run)
    time_clip(run, model, networks)


def pytorch_compiled(run: Run) -> None:
    """Time the same with its slow parts under `torch.compile`; sizes are dynamic, as the memory fills."""
    model, networks = network_of(run)
    for name in ("encode_clip", "attend_memory", "decode", "encode_memory"):
        setattr(model, name, run.machine.compiled(getattr(model, name)))
    time_clip(run, model, networks)


def network_of(run: Run) -> tuple[Any, Any]:
    """Return the modules on the device of the bench, and the settings of the schedule."""
    import torch

    bench = run.machine.bench()
    torch.set_default_device("cpu")
    size = sizes(run.context.sizes)
    module, model = run.machine.network(size.pytorch_variant)
    model = model.eval().to(bench.device)
    run.put("parameters", sum(p.numel() for p in model.parameters()))
    torch.set_default_device(bench.device)  # the schedule makes small tensors as it goes
    return model, module.settings(model)


def time_clip(run: Run, model: Any, networks: Any) -> None:
    """Time frames after those that fill the memory; masks of each frame come to the host."""
    import torch

    from export.verify.references import samwise_clip

    size, bench = sizes(run.context.sizes), run.machine.bench()
    warm = size.pytorch_warm
    frames = clip(run, warm + size.pytorch_frames)
    tokens = prompts_of(networks["samwise"]["text"]["vocabulary"], 1)[0].tokens
    times = []
    with torch.inference_mode(), torch.autocast(bench.device, torch.bfloat16):
        begin = time.perf_counter()
        for _ in samwise_clip(model, networks, frames, list(tokens)):
            times.append(time.perf_counter() - begin)
            if len(times) == warm:
                run.put("warm_up_seconds", times[-1])
            if len(times) > warm and len(times) % 8 == 0:
                run.put("video", timed(times, warm))
    run.put("video", timed(times, warm))


def timed(times: list[float], warm: int) -> dict[str, Any]:
    """Return milliseconds per frame after the first `warm` ones."""
    frames = len(times) - warm
    return {"ms_per_frame": 1e3 * (times[-1] - times[warm - 1]) / frames, "frames": frames}
