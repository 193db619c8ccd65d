"""Stages cut around their attention, so that compiled kernels can take it: `python -m export samwise ... --cuts`.

A bundle with cuts has the whole stages as well. `settings["cuts"]` names, per stage that may be replaced, the kernel,
the graphs around it in their order, and the file of the kernel's constants; `runtime/backends/split_stage.py` puts them together where
compiled kernels (`export.kernels`) are switched on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.manifest import TensorSpec
from runtime.errors import UserError
from runtime.kernels import plan

from .models.samwise import Samwise
from .networks.base import Network
from .networks.samwise import SIZES, bounds, sampler
from .stage import Form, Stage, stage, tensor
from .stages.attention_subgraphs import (
    AdapterDown,
    AdapterUp,
    FirstPart,
    LastPart,
    NextPart,
    memory_constants,
    window_constants,
)
from .stages.cross_modal_adapter import AdapterStage

FOLDER = "cuts"
TABLES = ("cosine", "sine")
"""Constants that stay float32 in a half bundle: rotation angles, which half would round by whole cells."""


@dataclass(frozen=True, slots=True)
class Cut:
    """One stage that a kernel can take part of."""

    stage: str
    kernel: str
    parts: tuple[Stage, ...]
    constants: Mapping[str, np.ndarray]
    more: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Its entry in `settings["cuts"]`."""
        return {
            "kernel": self.kernel,
            "parts": [part.name for part in self.parts],
            "constants": f"{FOLDER}/{self.stage}.npz",
            **self.more,
        }


def with_cuts(network: Network, model: Any, precision: str, work: Path) -> Network:
    """`network` with the parts of its cut stages, their settings and constants; constants are written into `work`.

    Raises UserError for a network without a stage that can be cut.
    """
    if precision not in ("fp32", "fp16"):
        raise UserError(f"kernels compute in half; --cuts does not go with --precision {precision}")
    if network.model != "samwise":  # with clicks besides, memory attention has SAM 2's sizes, and its own rules
        raise UserError(f"{network.model} has no stage that is cut for kernels; leave --cuts away")
    found = list(cuts(model))
    attachments = {}
    for cut in found:
        path = work / f"{cut.stage}.npz"
        kinds = {name: np.float32 if precision == "fp32" or name in TABLES else np.float16 for name in cut.constants}
        np.savez(path, **{name: array.astype(kinds[name]) for name, array in cut.constants.items()})
        attachments[cut.settings["constants"]] = path
    whole, parts = network.stages, tuple(part for cut in found for part in cut.parts)

    def stages() -> Iterable[Stage]:
        return chain(whole(), parts)

    return replace(
        network,
        stages=stages,
        attachments={**network.attachments, **attachments},
        settings={**network.settings, "cuts": {cut.stage: cut.settings for cut in found}},
    )


def cuts(model: Samwise) -> Iterator[Cut]:
    """Every stage of SAMWISE that can be cut, in the order of a clip's way through them."""
    model.eval()
    for i, adapter in enumerate(model.cmt_adapters):
        stage_ = AdapterStage(adapter)
        # the kernel's heads are 32 wide, as in every published network
        if stage_.patch and stage_.attention.q.out_features == plan.HEAD * stage_.attention.heads:
            yield _adapter(model, i, stage_)
    yield _memory_attention(model)


def _part(
    model: Samwise,
    limits: Mapping[str, int | str],
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    module: Any,
) -> Stage:
    return stage(
        name,
        inputs,
        outputs,
        module,
        sampler(inputs, limits),
        bounds(model.config),
        SIZES,
        {"trt": Form(module, "plain")},
    )


def _memory_attention(model: Samwise) -> Cut:
    c, attention, name = model.config, model.sam.memory_attention, "memory_attention"
    tokens, width, narrow = c.sam.side**2, c.sam.width, c.sam.memory_width
    part = partial(_part, model, {"map_index": "maps", "memory_age": c.slots})
    last = len(attention.layers)

    def maps(kind: str, i: int, channels: int = width) -> TensorSpec:
        return tensor(f"{kind}_{i}", "objects", tokens, channels)

    index = tensor("map_index", "objects", dtype="int64")
    age = tensor("memory_age", "objects", "slots", dtype="int64")
    parts = [
        part(
            f"{name}_part_0",
            (tensor("embedding", "maps", tokens, width), index, age),
            (maps("residual", 0), maps("queries", 0), tensor("ages", "objects", "slots", dtype="int32")),
            FirstPart(attention),
        )
    ]
    for i in range(1, last):
        parts.append(
            part(
                f"{name}_part_{i}",
                (maps("residual", i - 1), maps("attended", i - 1, narrow)),
                (maps("residual", i), maps("queries", i)),
                NextPart(attention, i),
            )
        )
    parts.append(
        part(
            f"{name}_part_{last}",
            (maps("residual", last - 1), maps("attended", last - 1, narrow)),
            (tensor("conditioned", "objects", tokens, width),),
            LastPart(attention),
        )
    )
    return Cut(name, "memory_attention", tuple(parts), memory_constants(attention, model.sam.maskmem_tpos_enc), {})


def _adapter(model: Samwise, i: int, adapter: AdapterStage) -> Cut:
    c, part = model.config, partial(_part, model, {})
    side, vision = c.sam.side * 2 >> i, c.sam.hiera.widths[i + 1]
    maps = tensor(f"vision_{i}", "frames", side, side, vision)
    text = tensor(f"text_{i}", "tokens", c.text.width)
    narrow, selected = (tensor(f"{kind}_{i}", "frames", side, side, c.adapter.width) for kind in ("narrow", "selected"))
    fused = tuple(tensor(f"{t.name}_fused", *t.shape) for t in (maps, text))
    parts = (
        part(f"adapter_{i}_part_0", (maps,), (narrow,), AdapterDown(adapter)),
        part(f"adapter_{i}_part_1", (maps, text, narrow, selected), fused, AdapterUp(adapter)),
    )
    return Cut(f"adapter_{i}", "window_attention", parts, window_constants(adapter), {"patch": adapter.patch})
