"""Input of `export_bundle`, and common parts of the stages of SAMWISE and SAM 2: bounds, sample inputs, variants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runtime.bundle.manifest import SplitStageSpec, TensorSpec

from ..layers.hiera import PUBLISHED_TRUNKS, HieraConfig
from ..stage import Sampler, Stage, Variant, stage
from ..verify.references import ReferenceFrame
from . import network

ReferenceClip = Callable[[Sequence[np.ndarray], Sequence[int], Sequence[int]], Iterable[ReferenceFrame]]


@dataclass(frozen=True, slots=True)
class ExportSource:
    """Everything that `export_bundle` needs of a network.

    `networks`     settings of each network that the bundle serves, by name
    `stages`       makes the stages, in the order of execution
    `clip`         plain torch: (frames uint8, token ids, verb positions) -> per frame (masks, low_res_logits, scores)
    `vocabulary`   number of token embeddings, None for a network without text
    `split_stages` stages that a compiled kernel can run part of
    `attachments`  further files of the bundle: path inside it -> present path; `demo` may name one of them
    """

    model: str
    variant: str
    image_size: int
    networks: Mapping[str, Mapping[str, Any]]
    stages: Callable[[], Iterable[Stage]]
    clip: ReferenceClip | None = None
    vocabulary: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    attachments: Mapping[str, Path] = field(default_factory=dict)
    demo: str | None = None
    split_stages: Mapping[str, SplitStageSpec] = field(default_factory=dict)


def describe(name: str, model: Any, **changes: Any) -> ExportSource:
    """Return the source of a bundle: `model`, an instance of the network `name`.

    `changes` override fields of the result (variant, provenance, attachments, demo ...).
    """
    module = network(name)
    networks = module.settings(model)
    text = next((settings["text"] for settings in networks.values() if "text" in settings), None)
    source = ExportSource(
        model=name,
        variant=module.variant(model),
        image_size=next(iter(networks.values()))["resize"]["max"],
        networks=networks,
        stages=partial(module.stages, model),
        clip=partial(module.clip, model, networks),
        vocabulary=text["vocabulary"] if text else None,
        # with these sizes the same modules can be built again, for instance for a timing beside the graphs
        provenance={"config": dataclasses.asdict(model.config)},
    )
    provenance = {**source.provenance, **changes.pop("provenance", {})}
    return dataclasses.replace(source, provenance=provenance, **changes)


def is_published(trunk: HieraConfig) -> bool:
    """Return whether the trunk is one of SAM 2's, and not one that was trained here."""
    return trunk_name(trunk) in PUBLISHED_TRUNKS


def trunk_name(trunk: HieraConfig) -> str:
    """Return `tiny`, `small`, `base_plus` or `large`, or the width of a trunk that is none of them."""
    for name, published in PUBLISHED_TRUNKS.items():
        if (trunk.width, tuple(trunk.blocks)) == (published.width, published.blocks):
            return name
    return f"width_{trunk.width}"


IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
"""Normalisation of pixels, as settings of a manifest."""

MAX_BATCH = 16
"""Maximum objects, maps and pictures in one call."""

TRACE_SIZES = {"frames": 3, "tokens": 6, "objects": 2, "maps": 4, "pictures": 3}
TRACE_SIZES |= {"slots": 3, "pointers": 5, "prompt_tokens": 7}
"""Sizes of symbols while tracing; see `export.stage.Stage.sizes`."""

SCALES = {"memory": 2.0, "embedding": 2.0, "dense": 0.5}
SCALES |= dict.fromkeys(("low_res_logits", "memoryless_logits", "mask_logits", "prompt_logits"), 5.0)
"""Standard deviation of sample inputs, about that of real ones; 1 where not listed."""

Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Draws a sample tensor of a shape."""

Ranges = Callable[[Mapping[str, int]], Mapping[str, tuple[int, int]]]


def binary(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw zeros and ones, float32."""
    return torch.randint(0, 2, shape, generator=generator).float()


def uniform(largest: float) -> Draw:
    """Return a draw from [0, largest)."""
    return lambda shape, generator: largest * torch.rand(shape, generator=generator)


@dataclass(frozen=True, slots=True)
class StageFactory:
    """Builds the stages of one network; called with the arguments that differ between stages.

    `bounds`      lowest and highest value of each symbol, besides those that all networks share
    `typical`     sizes for which engines are tuned, besides one object, map and picture
    `ranges`      sizes of the symbols -> range of each integer input
    `image_size`  side of the input image
    `trace_sizes` sizes of symbols while tracing, besides `TRACE_SIZES`
    """

    bounds: Mapping[str, tuple[int, int]]
    typical: Mapping[str, int]
    ranges: Ranges
    image_size: int
    trace_sizes: Mapping[str, int] = field(default_factory=dict)

    def __call__(
        self,
        name: str,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        module: nn.Module,
        variants: Mapping[str, Variant] | None = None,
        draws: Mapping[str, Draw] | None = None,
        **attributes: Any,
    ) -> Stage:
        """Build one stage; `attributes` are those of `StageSpec`.

        `draws` replaces the normal distribution from which a float input is sampled, by its name.
        """
        batch, size = (1, MAX_BATCH), self.image_size
        bounds = {"objects": batch, "maps": batch, "pictures": batch, "mask_side": (size // 4, size), **self.bounds}
        sizes = {**TRACE_SIZES, "mask_side": 3 * size // 8, **self.trace_sizes}
        attributes |= {"attention": bool(variants), "typical": {"objects": 1, "maps": 1, "pictures": 1, **self.typical}}
        sampler = self._sampler(inputs, draws or {})
        return stage(name, inputs, outputs, module, sampler, bounds, sizes, variants, **attributes)

    def _sampler(self, inputs: tuple[TensorSpec, ...], draws: Mapping[str, Draw]) -> Sampler:
        """Return a sampler of inputs of realistic scale: indices inside their arrays, floats as `draws` states."""

        def sample(sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
            ranges = self.ranges(sizes)
            return {spec.name: one(spec, spec.resolve(sizes), ranges, generator) for spec in inputs}

        def one(spec: TensorSpec, shape: tuple[int, ...], ranges: Mapping, generator: torch.Generator) -> Tensor:
            if spec.name in draws:
                return draws[spec.name](shape, generator)
            if spec.dtype == "bool":
                return binary(shape, generator).bool()
            if spec.dtype == "int64":
                low, high = ranges[spec.name]
                return torch.randint(low, high, shape, generator=generator)
            return SCALES.get(spec.name, 1.0) * torch.randn(shape, generator=generator)

        return sample


def attention_variants(
    module: nn.Module, wide: nn.Module | None = None, cuda: nn.Module | None = None
) -> dict[str, Variant]:
    """Return the variants of a stage with large attention; `wide` is its module for TensorRT, and `cuda` that for ONNX
    Runtime on CUDA, where they differ. Without `cuda` one graph serves ONNX Runtime everywhere, unless it is cut into
    tiles that fit a CPU's cache."""
    tiled = any(getattr(part, "row_tiles", 1) > 1 for part in module.modules())
    ort = Variant(module, "ort")
    other = Variant(cuda or module, "cuda") if cuda is not None or tiled else ort
    return {"ort": ort, "cuda": other, "trt": Variant(wide or module, "plain")}
