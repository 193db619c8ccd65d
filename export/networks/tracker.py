"""Stages of SAM 2's prompts, decoder and memory, which SAM 3's tracker has in other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from runtime.bundle.manifest import TensorSpec

from ..models.sam import Sam, SamConfig
from ..stage import Stage, tensor
from ..stages.memory_attention import FusedMemoryAttentionStage, MemoryAttentionStage
from ..stages.memory_encoder import PromptMemoryStage
from ..stages.prompt_decoder import MaskPromptStage, PromptDecoderStage, PromptEncoderStage
from .base import Ranges, StageFactory, attention_variants, binary, uniform

MAX_SLOTS, MAX_POINTERS = 32, 48
"""Maximum maps and pointers that one object attends to: 6 recent frames and 26 conditioning frames."""


def tracker_bounds(points: int) -> dict[str, tuple[int, int]]:
    """Return the bounds of the symbols; `points` is the maximum number of tokens of a prompt, padding included."""
    return {"slots": (1, MAX_SLOTS), "pointers": (0, MAX_POINTERS), "prompt_tokens": (1, points)}


def tracker_ranges(config: SamConfig) -> Ranges:
    """Return the ranges of the integer inputs."""

    def ranges(sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        return {
            "labels": (-1, 4),
            "sparse_count": (0, sizes.get("prompt_tokens", 0) + 1),
            "maskmem_tpos_index": (0, config.ages),
            "map_index": (0, sizes.get("maps", 1)),
            "picture_index": (0, sizes.get("pictures", 1)),
        }

    return ranges


def tracker_stages(sam: Sam, factory: StageFactory) -> list[Stage]:
    """Return the stages from prompts and feature maps to masks and memory, in the order of execution."""
    return [
        *_prompts(sam, factory),
        _mask_decoder(sam, factory),
        _memory_attention(sam, factory),
        _memory_encoder(sam, factory),
    ]


def features(c: SamConfig) -> tuple[TensorSpec, ...]:
    """Return the feature maps of a frame, without and with `no_mem_embed`, and those of the mask decoder."""
    side = c.side
    return (
        *(tensor(n, "frames", side * side, c.width) for n in ("embedding", "embedding_no_memory")),
        tensor("high_res_0", "frames", c.width // 8, side * 4, side * 4, bf16_ok=False),
        tensor("high_res_1", "frames", c.width // 4, side * 2, side * 2, bf16_ok=False),
    )


def _objects(name: str, *shape: int | str, dtype: str = "float32", **attributes: bool) -> TensorSpec:
    return tensor(name, "objects", *shape, dtype=dtype, **attributes)


_exact = partial(_objects, keep_fp32=True)
"""A tensor that the schedule reads on the host or compares with zero, or a position in the image."""


def _prompts(sam: Sam, factory: StageFactory) -> list[Stage]:
    c = sam.config
    low, side = c.side * 4, c.mask_size
    inputs = (
        _exact("points", "prompt_tokens", 2),
        _objects("labels", "prompt_tokens", dtype="int64"),
        _exact("prompt_logits", low, low),
        _objects("has_mask", dtype="bool"),
    )
    tokens = _objects("sparse", "prompt_tokens", c.width), _objects("dense", c.side**2, c.width)
    # masks of another size than the image's (SAM 3) have logits that depend on the size of the source
    prompt_logits, mask_logits = (_exact(name, low, low) for name in ("prompt_logits", "mask_logits"))
    no_pointer = _objects("no_obj_ptr", c.width)
    outputs = (prompt_logits, no_pointer) if c.resizes_masks else (mask_logits, prompt_logits)
    encoder = PromptEncoderStage(sam.sam_prompt_encoder)
    of_masks: dict[str, Any] = {"role": "mask_prompt", "int8_ok": False}
    mask_prompt = MaskPromptStage(sam.mask_downsample, side, sam.no_pointer if c.resizes_masks else None)
    mask, points = (_exact("mask", side, side),), {"points": uniform(c.image_size)}
    return [
        # INT8 saves nothing on a few rows of coordinates
        factory("prompt_encoder", inputs, tokens, encoder, draws=points, role="prompt_encoder", int8_ok=False),
        # its products are resampling and permutation matrices, not learned weights
        factory("mask_prompt", mask, outputs, mask_prompt, draws={"mask": binary}, graph_safe=True, **of_masks),
    ]


def _mask_decoder(sam: Sam, factory: StageFactory) -> Stage:
    c = sam.config
    side, low = c.side, c.side * 4
    inputs = (
        _objects("conditioned", side * side, c.width),
        _objects("sparse", "prompt_tokens", c.width),
        _objects("sparse_count", dtype="int64"),
        _objects("dense", side * side, c.width),
        tensor("high_res_0", "pictures", c.width // 8, low, low, bf16_ok=False),
        _objects("picture_index", dtype="int64"),
        tensor("high_res_1", "maps", c.width // 4, side * 2, side * 2, bf16_ok=False),
        _objects("map_index", dtype="int64"),
        _objects("multimask", dtype="bool"),
    )
    outputs = (
        _exact("low_res_logits", low, low),
        _exact("all_logits", 4, low, low),
        _exact("ious", 4),
        _objects("selected", dtype="int64"),
        _exact("score"),
        _objects("obj_ptr", c.width),
    )
    module = PromptDecoderStage(sam.sam_mask_decoder, sam.sam_prompt_encoder, sam.obj_ptr_proj, sam.no_pointer, side)
    return factory("prompt_decoder", inputs, outputs, module, role="mask_decoder", stride=c.stride)


def _memory_attention(sam: Sam, factory: StageFactory) -> Stage:
    c = sam.config
    projection = sam.obj_ptr_tpos_proj if c.pointer_positions else None
    narrow, wide = (
        MemoryAttentionStage(sam.memory_attention, sam.maskmem_tpos_enc, w, projection) for w in (False, True)
    )
    inputs = (
        tensor("embedding", "maps", c.side**2, c.width),
        _objects("map_index", dtype="int64"),
        _objects("memory", "slots", c.side**2, c.memory_width),
        _objects("maskmem_tpos_index", "slots", dtype="int64"),
        _objects("obj_ptrs", "pointers", c.width),
        *((_exact("obj_ptr_tpos", "pointers"),) if c.pointer_positions else ()),
    )
    outputs = (_objects("conditioned", c.side**2, c.width),)
    draws = {"obj_ptr_tpos": uniform(1.0)}
    attributes: dict[str, Any] = {"draws": draws, "role": "memory_attention", "bf16_ok": True, "stride": c.stride}
    fused = FusedMemoryAttentionStage(sam.memory_attention, sam.maskmem_tpos_enc, projection)
    variants = attention_variants(narrow, wide, fused)
    return factory("memory_attention", inputs, outputs, narrow, variants, **attributes)


def _memory_encoder(sam: Sam, factory: StageFactory) -> Stage:
    c = sam.config
    inputs = (
        tensor("embedding", "maps", c.side**2, c.width),
        _objects("map_index", dtype="int64"),
        _exact("mask_logits", "mask_side", "mask_side"),
        _objects("binarize", dtype="bool"),
        *((_exact("score"),) if c.pointer_positions else ()),
        # where a remembered mask has the side of the image, both ways are the same, and no node would read it
        *((_objects("direct", dtype="bool"),) if c.mask_size != c.image_size else ()),
    )
    outputs = (_objects("maskmem_features", c.side**2, c.memory_width),)
    absent = sam.no_obj_embed_spatial if c.pointer_positions else None
    module = PromptMemoryStage(sam.memory_encoder, c.image_size, absent, c.mask_size)
    return factory("prompt_memory_encoder", inputs, outputs, module, role="memory_encoder", stride=c.stride)
