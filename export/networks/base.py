"""A network as the export sees it: its stages, its numbers, and a clip in plain torch to be measured by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from runtime.bundle.manifest import SplitStageSpec

from ..stage import Stage
from ..verify.references import samwise_clip
from . import network

Clip = Callable[
    [Sequence[np.ndarray], Sequence[int], Sequence[int]], Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
]

CLIPS: Mapping[str, Callable[..., Any]] = {"samwise": samwise_clip}
"""Plain torch schedules by network, where its file has no function `clip` of its own: (model, settings by network,
frames, token ids, verb positions) -> masks, logits, scores."""

TRUNKS = {
    (96, (1, 2, 7, 2)): "tiny",
    (96, (1, 2, 11, 2)): "small",
    (112, (2, 3, 16, 3)): "base_plus",
    (144, (2, 6, 36, 4)): "large",
}
"""Hiera's sizes as SAM 2 publishes them: (width, blocks) -> name."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a network hands over to be exported.

    `networks`     settings of each network that the bundle serves, by name
    `stages`       makes the stages, in the order of a frame's way through them
    `clip`         plain torch: (frames uint8, token ids, verb positions) -> per frame (masks, low_res_logits, scores)
    `vocabulary`   number of token embeddings, None for a network without text
    `split_stages` stages that a compiled kernel can run part of
    `attachments`  further files of the bundle: path inside it -> where it is now; `demo` may name one of them
    """

    model: str
    variant: str
    image_size: int
    networks: Mapping[str, Mapping[str, Any]]
    stages: Callable[[], Iterable[Stage]]
    clip: Clip | None = None
    vocabulary: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    attachments: Mapping[str, Path] = field(default_factory=dict)
    demo: str | None = None
    split_stages: Mapping[str, SplitStageSpec] = field(default_factory=dict)


def describe(name: str, model: Any, **changes: Any) -> Network:
    """`model`, an instance of the network `name` of `export.models`, ready for `export_bundle`.

    `changes` override fields of the result (variant, provenance, attachments, demo ...).
    """
    module = network(name)
    networks = module.settings(model)
    text = next((settings["text"] for settings in networks.values() if "text" in settings), None)
    clip = CLIPS.get(name) or getattr(module, "clip", None)
    fields = {
        "model": name,
        "variant": getattr(module, "variant", variant)(model),
        "image_size": next(iter(networks.values()))["resize"]["max"],
        "networks": networks,
        "stages": partial(module.stages, model),
        "clip": clip and partial(clip, model, networks),
        "vocabulary": text["vocabulary"] if text else None,
    }
    # with its sizes in the manifest, the same modules can be built again and timed beside the graphs
    provenance = {"config": dataclasses.asdict(model.config)} if dataclasses.is_dataclass(model.config) else {}
    return Network(**(fields | changes | {"provenance": provenance | dict(changes.get("provenance", {}))}))


def variant(model: Any) -> str:
    """`tiny`, `small`, `base_plus`, `large`, or the trunk's width where it is none of them. A network without a Hiera
    brings its own function of this name."""
    trunk = model.config.sam.hiera
    return TRUNKS.get((trunk.width, tuple(trunk.blocks)), f"width_{trunk.width}")
