"""Stages split around their attention, so that compiled kernels can run it: `python -m export samwise ...
--split-attention`.

A bundle with split stages has the whole stages as well. `Manifest.split_stages` names, per stage that may be replaced,
the kernel, the subgraphs around it in their order, the file of the kernel's constants and the roles of tensors;
`runtime/backends/split_stage.py` puts them together where compiled kernels (`export.kernels`) are switched on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn

from runtime.bundle.manifest import STEP, SUBGRAPH, SplitStageSpec, TensorSpec
from runtime.errors import UserError
from runtime.kernels import plan

from .models.samwise import Samwise
from .networks import NETWORKS
from .networks.base import ExportSource
from .networks.samwise import MAX_WINDOW_WITHOUT_STEPS, stage_factory
from .stage import Stage, Variant, tensor
from .stages.attention_subgraphs import (
    AdapterDown,
    AdapterStepUp,
    AdapterUp,
    FirstSubgraph,
    LastSubgraph,
    MiddleSubgraph,
    memory_constants,
    window_constants,
)
from .stages.cross_modal_adapter import Adapter, AdapterStage

FOLDER = "split_stages"
TABLES = ("cosine", "sine")
"""Constants that stay float32 in a half bundle: rotation angles, which half would round by whole cells."""


@dataclass(frozen=True, slots=True)
class SplitAttention:
    """One stage that a kernel can run part of: its subgraphs, the kernel's constants, and its entry in the manifest."""

    stage: str
    kernel: str
    subgraphs: tuple[Stage, ...]
    constants: Mapping[str, np.ndarray]
    tensors: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def spec(self) -> SplitStageSpec:
        """Its entry in `Manifest.split_stages`."""
        names = tuple(subgraph.name for subgraph in self.subgraphs)
        return SplitStageSpec(self.kernel, names, f"{FOLDER}/{self.stage}.npz", self.tensors, self.sizes)


def with_split_stages(source: ExportSource, model: Any, precision: str, work: Path) -> ExportSource:
    """Return `source` with the subgraphs of its split stages and their constants, which are written into `work`.

    Raises UserError for a network without a stage that can be split.
    """
    if precision not in ("fp32", "fp16"):
        raise UserError(f"kernels compute in half; --split-attention does not go with --precision {precision}")
    if not NETWORKS[source.model].split_attention:
        raise UserError(f"{source.model} has no stage that can be split for kernels; remove --split-attention")
    found = list(split_stages(model))
    attachments = {}
    for split in found:
        path = work / f"{split.stage}.npz"
        kinds = {name: np.float32 if precision == "fp32" or name in TABLES else np.float16 for name in split.constants}
        arrays: dict[str, Any] = {name: array.astype(kinds[name]) for name, array in split.constants.items()}
        np.savez(path, **arrays)
        attachments[split.spec.constants] = path
    whole, subgraphs = source.stages, tuple(subgraph for split in found for subgraph in split.subgraphs)

    def stages() -> Iterable[Stage]:
        return chain(whole(), subgraphs)

    specs = {split.stage: split.spec for split in found}
    return replace(source, stages=stages, attachments={**source.attachments, **attachments}, split_stages=specs)


def split_stages(model: Samwise) -> Iterator[SplitAttention]:
    """Yield every stage of SAMWISE that can be split, in the order in which a clip runs through them."""
    model.eval()
    for i, adapter in enumerate(model.cmt_adapters):
        stage_ = AdapterStage(cast(Adapter, adapter))
        # the kernel's heads are 32 wide, as in every published network
        if stage_.patch and stage_.attention.q.out_features == plan.HEAD * stage_.attention.heads:
            yield _adapter(model, i, stage_)
            if model.config.window > MAX_WINDOW_WITHOUT_STEPS:
                yield _adapter(model, i, stage_, step=True)
    yield _memory_attention(model)


def _subgraph(
    model: Samwise, name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], module: nn.Module
) -> Stage:
    variants = {"cuda": Variant(module, "cuda"), "trt": Variant(module, "plain")}
    return stage_factory(model.config)(name, inputs, outputs, module, variants, role=SUBGRAPH)


def _memory_attention(model: Samwise) -> SplitAttention:
    c, attention, name = model.config, model.sam.memory_attention, "memory_attention"
    tokens, width, narrow = c.sam.side**2, c.sam.width, c.sam.memory_width
    subgraph = partial(_subgraph, model)
    last = len(attention.layers)

    def maps(kind: str, i: int, channels: int = width) -> TensorSpec:
        return tensor(f"{kind}_{i}", "objects", tokens, channels)

    index = tensor("map_index", "objects", dtype="int64")
    age = tensor("maskmem_tpos_index", "objects", "slots", dtype="int64")
    inputs = tensor("embedding", "maps", tokens, width), index, age
    outputs = maps("residual", 0), maps("queries", 0), tensor("ages", "objects", "slots", dtype="int32")
    parts: list[tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...], nn.Module]]
    parts = [(inputs, outputs, FirstSubgraph(attention))]
    for i in range(1, last + 1):
        between = maps("residual", i - 1), maps("attended", i - 1, narrow)
        if i < last:
            parts.append((between, (maps("residual", i), maps("queries", i)), MiddleSubgraph(attention, i)))
        else:
            parts.append((between, (tensor("conditioned", "objects", tokens, width),), LastSubgraph(attention)))
    subgraphs = tuple(subgraph(f"{name}_subgraph_{i}", *part) for i, part in enumerate(parts))
    constants = memory_constants(attention, model.sam.maskmem_tpos_enc)
    whole = ("embedding", "map_index", "memory", "maskmem_tpos_index", "obj_ptrs", "conditioned", "ages")
    roles = {role: role for role in whole} | {role: f"{role}_{{layer}}" for role in ("residual", "queries", "attended")}
    return SplitAttention(name, "memory_attention", subgraphs, constants, roles)


def _adapter(model: Samwise, i: int, adapter: AdapterStage, step: bool = False) -> SplitAttention:
    """`step`: that of low latency, one frame behind kept ones, whose maps and places the kernel reads as they are."""
    c, subgraph, suffix = model.config, partial(_subgraph, model), STEP if step else ""
    name, side, vision = f"adapter_{i}{suffix}", c.sam.side * 2 >> i, c.sam.hiera.widths[i + 1]
    frames = 1 if step else "frames"
    maps = tensor(f"vision_{i}", frames, side, side, vision)
    text = tensor(f"text_{i}", "tokens", c.text.width)
    narrow, selected = (tensor(f"{kind}_{i}", frames, side, side, c.adapter.width) for kind in ("narrow", "selected"))
    kept = (tensor(f"kept_{i}", "kept", *narrow.shape[1:]),) if step else ()
    fused = tuple(tensor(f"{t.name}_fused", *t.shape) for t in (maps, text))
    up = (AdapterStepUp if step else AdapterUp)(adapter)
    subgraphs = (
        subgraph(f"{name}_subgraph_0", (maps,), (narrow,), AdapterDown(adapter)),
        subgraph(f"{name}_subgraph_1", (maps, text, narrow, selected, *kept), fused, up),
    )
    roles = {role: f"{role}_{i}" for role in ("vision", "text", "narrow", "selected")}
    roles |= {"kept": f"kept_{i}", "index": "kept_index"} if step else {}
    kernel, sizes = f"window_attention{suffix}", {"patch": adapter.patch}
    return SplitAttention(name, kernel, subgraphs, window_constants(adapter), roles, sizes)
