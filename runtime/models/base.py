"""What a network needs of a bundle, checked before anything is allocated: settings, bounds, and how its tensors fit
together.

The tables are those of `docs/architecture.md`. A word of a shape is a number, a capital letter for a size that is the
same wherever the letter stands in this network, or a small letter for any size. `I` is the bundle's image size. What
stands before a colon is the type, where it is not a floating one. A tensor that no table names is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..bundle.manifest import Manifest, StageSpec, TensorSpec
from ..errors import BundleError

FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Signature:
    """`settings` and `bounds` that must be there, and `tensors`: shape by name, or by `stage.name` where it is needed.
    `inputs` and `outputs` by stage, of those that the schedule asks for by name."""

    settings: tuple[str, ...]
    bounds: tuple[str, ...]
    tensors: Mapping[str, str]
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


ATTENTION = {
    "embedding": "t N D",
    "map_index": "int64: b",
    "memory": "b s N M",
    "maskmem_tpos_index": "int64: b s",
    "obj_ptrs": "b p D",
    "obj_ptr_tpos": "b p",
    "conditioned": "b N D",
    "maskmem_features": "b N M",
    "mask_logits": "b q q",
}
DECODER = {
    "embedding_no_memory": "t N D",
    "high_res_0": "t F S S",
    "high_res_1": "t G H H",
    "sparse_count": "int64: b",
    "picture_index": "int64: b",
    "low_res_logits": "b S S",
    "score": "b",
    "obj_ptr": "b D",
}

SIGNATURES = {
    "samwise": Signature(
        ("window", "mean", "std", "resize", "memory", "conditional_memory", "text"),
        ("objects",),
        {
            **ATTENTION,
            **DECODER,
            "pixels": "t 3 I I",
            "vision_0": "t A A C",
            "vision_0_fused": "t A A C",
            "vision_1": "t B B E",
            "vision_1_fused": "t B B E",
            "vision_2": "t J J K",
            "vision_2_fused": "t J J K",
            "tokens": "int64: l",
            "text_0": "l W",
            "text_0_fused": "l W",
            "text_1": "l W",
            "text_1_fused": "l W",
            "text_2": "l W",
            "text_2_fused": "l W",
            "verb": "int64: v",
            "sparse": "b P D",
            "iou": "b",
            "early_token": "b D",
            "memoryless_logits": "b S S",
            "remembered_logits": "b I I",
            "decision": "b 2",
            "switched": "bool: b",
        },
        {
            "hiera_0": "pixels",
            "memory_attention": "embedding memory maskmem_tpos_index obj_ptrs",
            "mask_decoder": "sparse high_res_0 high_res_1",
            "memory_encoder": "mask_logits",
        },
        {
            "hiera_0": "vision_0 high_res_0",
            "neck": "embedding embedding_no_memory high_res_1",
            "text_prompt": "sparse",
            "mask_decoder": "low_res_logits iou score obj_ptr early_token",
            "memory_encoder": "maskmem_features",
            "memory_attention": "conditioned",
            "conditional_memory": "remembered_logits decision switched",
        },
    ),
    "sam2": Signature(
        ("mean", "std", "resize", "memory", "resample"),
        ("objects", "maps", "prompt_tokens"),
        {
            **ATTENTION,
            **DECODER,
            "pixels": "t 3 I I",
            "points": "b k 2",
            "labels": "int64: b k",
            "prompt_logits": "b S S",
            "has_mask": "bool: b",
            "sparse": "b k D",
            "dense": "b N D",
            "mask": "b I I",
            "multimask": "bool: b",
            "all_logits": "b 4 S S",
            "ious": "b 4",
            "selected": "int64: b",
            "binarize": "bool: b",
        },
        {
            "image_encoder": "pixels",
            "memory_attention": "embedding memory maskmem_tpos_index obj_ptrs",
            "prompt_decoder": "sparse dense",
            "mask_prompt": "mask",
        },
        {
            "image_encoder": "embedding embedding_no_memory high_res_0 high_res_1",
            "prompt_encoder": "sparse dense",
            "mask_prompt": "mask_logits prompt_logits",
            "memory_attention": "conditioned",
            "prompt_memory_encoder": "maskmem_features",
            "prompt_decoder": "low_res_logits all_logits ious selected score obj_ptr",
        },
    ),
    "refersam": Signature(
        ("mean", "std", "resize", "text"),
        ("objects",),
        {
            "pixels": "1 3 I I",
            "vit": "1 v v D",
            "pyramid": "1 N P",
            "stem": "1 C S S",
            "tokens": "int64: l",
            "text.text": "l W",
            "fuse.text": "b l W",
            "text_count": "int64: b",
            "low_res_logits": "b S S",
            "coarse_logits": "b S S",
            "iou": "b",
        },
        {"image": "pixels", "text": "tokens", "fuse": "vit pyramid stem text text_count"},
        {"image": "vit pyramid stem", "text": "text", "fuse": "low_res_logits coarse_logits iou"},
    ),
}


def check(name: str, manifest: Manifest, specs: Mapping[str, StageSpec]) -> None:
    """Raise BundleError when the bundle does not hold a network `name`: the first thing that is missing or does not
    fit."""
    signature = SIGNATURES[name]
    for kind, needed, have in (
        ("settings", signature.settings, manifest.networks[name]),
        ("bounds", signature.bounds, manifest.bounds),
    ):
        missing = [n for n in needed if n not in have]
        if missing:
            raise BundleError(f"{kind} {', '.join(missing)} are missing; export the bundle again")
    for symbol in signature.bounds:
        if manifest.bounds[symbol][1] < 1:
            raise BundleError(f"bounds.{symbol} leave room for nothing; export the bundle again")
    resize = manifest.networks[name].get("resize")
    if resize is not None and max(resize["max"], resize.get("short", 1)) > manifest.image_size:
        raise BundleError(f"settings.resize makes pictures larger than image_size {manifest.image_size}")
    sizes: dict[str, Any] = {"I": manifest.image_size}
    for stage, spec in specs.items():
        _named(spec, "input", {t.name for t in spec.inputs}, signature.inputs.get(stage, ""))
        _named(spec, "output", {t.name for t in spec.outputs}, signature.outputs.get(stage, ""))
        for tensor in (*spec.inputs, *spec.outputs):
            wanted = signature.tensors.get(f"{stage}.{tensor.name}", signature.tensors.get(tensor.name))
            if wanted is not None:
                _fits(stage, tensor, wanted, sizes)


def _named(spec: StageSpec, kind: str, have: set[str], wanted: str) -> None:
    missing = sorted(set(wanted.split()) - have)
    if missing:
        raise BundleError(f"stage {spec.name} has no {kind} {', '.join(missing)}; export the bundle again")


def _fits(stage: str, tensor: TensorSpec, wanted: str, sizes: dict[str, Any]) -> None:
    """Compare one tensor with its row of the table; capital letters take their size from the first tensor that has
    them."""
    dtype, _, shape = wanted.rpartition(": ")
    words, where = shape.split(), f"stage {stage}: {tensor.name} {tensor.dtype} {list(tensor.shape)}"
    if tensor.dtype != dtype if dtype else tensor.dtype not in FLOATS:
        raise BundleError(f"{where} must be {dtype or 'of a floating type'}; export the bundle again")
    if len(words) != len(tensor.shape):
        raise BundleError(f"{where} must have {len(words)} dimensions ({shape}); export the bundle again")
    for word, size in zip(words, tensor.shape):
        if word.islower():
            continue
        expected = int(word) if word.isdigit() else sizes.setdefault(word, size)
        if size != expected or not isinstance(size, int) or size < 1:
            raise BundleError(
                f"{where}: {size} does not fit the other tensors, {expected} would ({shape}); export the bundle again"
            )
