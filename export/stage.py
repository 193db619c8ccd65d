"""A stage on the torch side: signature, module, sample inputs, variants.

A network file in `export/networks/` makes a list of stages; `export.onnx` turns each into graphs and
`export.verify.parity` compares the graphs with the module. Nothing here depends on ONNX or a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from runtime.bundle import manifest
from runtime.bundle.manifest import StageSpec, TensorSpec

Sampler = Callable[[Mapping[str, int], torch.Generator], dict[str, Tensor]]

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in manifest.DTYPES}


@dataclass(frozen=True, slots=True)
class Variant:
    """One graph of a stage: the module to trace and its implementation of attention (see `layers.attention`)."""

    module: nn.Module
    attention_impl: str = "chunked"


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, ready to export.

    `spec`    signature; `spec.files` stays empty until graphs exist.
    `module`  the reference. `module(*inputs)` takes tensors in the order of `spec.inputs` and returns a tuple of
              tensors in the order of `spec.outputs` (a tuple of one, too). In eval mode, no gradients, float32 on the
              CPU.
    `sampler` (sizes of the symbols, generator) -> inputs by name, of realistic scale.
    `bounds`  lowest and highest value of each symbol of `spec`.
    `sizes`   the symbol values to trace with: none of them 0 or 1, no two alike, none a constant of the network by
              accident, so that no symbol is specialised or merged with another.
    `variants` graphs to export by name; always has "default". Every variant has the signature of `spec` and must agree
              with `module`.
    """

    spec: StageSpec
    module: nn.Module
    sampler: Sampler
    bounds: Mapping[str, tuple[int, int]]
    sizes: Mapping[str, int]
    variants: Mapping[str, Variant] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.spec.name

    def sample(self, sizes: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, Tensor]:
        """Return seeded inputs by name, in spec order. `sizes` overrides the tracing sizes symbol by symbol."""
        sizes = {**self.sizes, **(sizes or {})}
        tensors = self.sampler(sizes, torch.Generator().manual_seed(seed))
        for spec in self.spec.inputs:
            tensor = tensors[spec.name]
            assert tuple(tensor.shape) == spec.resolve(sizes), (self.name, spec.name, tuple(tensor.shape), sizes)
            assert tensor.dtype == DTYPES[spec.dtype], (self.name, spec.name, tensor.dtype)
        return {spec.name: tensors[spec.name] for spec in self.spec.inputs}

    def dynamic_shapes(self) -> tuple[dict[int, torch.export.Dim], ...]:
        """Return the `dynamic_shapes` of torch.export for the positional inputs, with one Dim per symbol."""
        dims = {s: torch.export.Dim(s, min=low, max=high) for s, (low, high) in self.bounds.items()}
        return tuple(
            {axis: dims[d] for axis, d in enumerate(spec.shape) if isinstance(d, str)} for spec in self.spec.inputs
        )

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the reference outputs by name."""
        outputs = self.module(*(inputs[spec.name] for spec in self.spec.inputs))
        return dict(zip((spec.name for spec in self.spec.outputs), outputs, strict=True))


def tensor(name: str, *shape: int | str, dtype: str = "float32", **attributes: bool) -> TensorSpec:
    """Build a `TensorSpec`."""
    return TensorSpec(name, dtype, tuple(shape), **attributes)


def stage(
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    module: nn.Module,
    sampler: Sampler,
    bounds: Mapping[str, tuple[int, int]],
    sizes: Mapping[str, int],
    variants: Mapping[str, Variant] | None = None,
    **attributes: Any,
) -> Stage:
    """Build a `Stage`. `attributes` are those of `StageSpec`.

    Bounds and sizes of symbols that it does not use are dropped, "default" is added to the variants.
    """
    module = module.eval().requires_grad_(False)
    spec = StageSpec(name, inputs, outputs, **attributes)
    spec = replace(spec, typical={s: size for s, size in spec.typical.items() if s in spec.symbols})
    for variant in (variants or {}).values():
        variant.module.eval().requires_grad_(False)
    symbols = sorted(spec.symbols)
    bounds, sizes = {s: bounds[s] for s in symbols}, {s: sizes[s] for s in symbols}
    return Stage(spec, module, sampler, bounds, sizes, {"default": Variant(module), **(variants or {})})
