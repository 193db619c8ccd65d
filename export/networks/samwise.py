"""SAMWISE for export: checkpoint, stages (see `docs/architecture.md`), settings and parity clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from runtime.bundle.manifest import STEP, TensorSpec

from ..checkpoints.samwise import load_samwise as load
from ..models.samwise import Samwise, SamwiseConfig
from ..stage import Stage, tensor
from ..stages.adapter_step import AdapterStep
from ..stages.conditional_memory import ConditionalMemoryStage
from ..stages.cross_modal_adapter import Adapter, AdapterStage
from ..stages.hiera import FirstHiera, NextHiera
from ..stages.mask_decoder import NO_OBJECT_LOGIT, MaskDecoderStage
from ..stages.memory_attention import FusedMemoryAttentionStage, MemoryAttentionStage
from ..stages.memory_encoder import MemoryEncoderStage
from ..stages.neck import NeckStage
from ..stages.prompt_encoder import TextPromptStage
from ..stages.text_encoder import FirstText, NextText
from ..verify.references import samwise_clip as clip
from .base import IMAGENET, StageFactory, attention_variants, is_published, trunk_name

__all__ = ["clip", "load", "settings", "stages", "variant"]

ADAPTER = "cross_modal_adapter"
"""Role of the adapters."""

MAX_WINDOW_WITHOUT_STEPS = 2
"""Longest window without steps: the number of kept maps would be fixed."""


def variant(model: Samwise) -> str:
    """Return the name of the trunk."""
    return trunk_name(model.config.sam.hiera)


def settings(model: Samwise) -> dict[str, Any]:
    """Return the settings of SAMWISE."""
    c = model.config
    size = c.sam.image_size
    own = {
        "window": c.window,
        # the official video transform resizes the short side to 1020 of 1024; networks trained here use all of the size
        "resize": {"rule": "samwise_video", "short": size - 4 if is_published(c.sam.hiera) else size, "max": size},
        **IMAGENET,
        # the reference counts the frame itself in both
        "memory": {"num_maskmem": c.slots + 1, "max_obj_ptrs": c.pointers + 1},
        "conditional_memory": {"first": 5, "every": 3} if c.conditional_hidden else None,
        "text": {"max_tokens": c.text.max_tokens, "vocabulary": c.text.vocabulary, "motion": c.sam.motion},
        "no_object_logit": NO_OBJECT_LOGIT,
    }
    return {"samwise": own}


def stage_factory(config: SamwiseConfig) -> StageFactory:
    """Return the factory of SAMWISE's stages; engines are tuned for a sentence of 14 words and a full memory."""

    def ranges(sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        return {
            "tokens": (0, config.text.vocabulary),
            "verb": (0, sizes.get("tokens", 0)),
            "map_index": (0, sizes.get("maps", 0)),
            "picture_index": (0, sizes.get("pictures", 0)),
            "maskmem_tpos_index": (0, config.slots),
            "kept_index": (0, sizes.get("kept", 0)),
            "sparse_count": (0, 3),
        }

    bounds = {
        "frames": (1, config.window),
        "kept": (1, config.window - 1),
        "tokens": (1, config.text.max_tokens),
        "slots": (1, config.slots),
        "pointers": (1, config.pointers),
    }
    typical = {"tokens": 16, "slots": config.slots, "pointers": config.pointers}
    return StageFactory(bounds, typical, ranges, config.sam.image_size, {"kept": 5 if config.window > 5 else 2})


def stages(model: Samwise) -> list[Stage]:
    """Split the network into stages, in the order of execution, and put it in eval mode."""
    model.eval()
    factory = stage_factory(model.config)
    clip = _clip_stages(model, factory)
    steps = [adapter_step(stage, model.config) for stage in clip if stage.spec.role == ADAPTER]
    return [*clip, *_frame_stages(model, factory), *(steps if model.config.window > MAX_WINDOW_WITHOUT_STEPS else ())]


def _clip_stages(model: Samwise, factory: StageFactory) -> list[Stage]:
    """Build the stages of a clip: trunk, text tower and adapters in turn, then neck and prompt."""
    c, sam, tower = model.config, model.sam, model.tower
    side, width, size = c.sam.side, c.sam.width, c.sam.image_size
    maps = [
        tensor(f"vision_{i}", "frames", side * 2 >> i, side * 2 >> i, w) for i, w in enumerate(c.sam.hiera.widths[1:])
    ]
    texts = [tensor(f"text_{i}", "tokens", c.text.width) for i in range(3)]
    fused = [tensor(f"{t.name}_fused", *t.shape) for t in (*maps, *texts)]
    pixels = tensor("pixels", "frames", 3, size, size, keep_fp32=True)
    fine = tensor("high_res_0", "frames", width // 8, side * 4, side * 4, bf16_ok=False)
    trunk, text = partial(factory, role="hiera", bf16_ok=True), partial(factory, role="text_encoder")
    first = FirstHiera(sam.trunk, sam.neck.lateral(0), sam.sam_mask_decoder.conv_s0, size)
    tokens = tensor("tokens", "tokens", dtype="int64")
    out = [
        trunk("hiera_0", (pixels,), (maps[0], fine), first, attention_variants(first), stride=c.sam.stride // 2),
        text("text_0", (tokens,), (texts[0],), FirstText(tower, c.text_stages[0])),
    ]
    for i, adapter in enumerate(AdapterStage(cast(Adapter, adapter)) for adapter in model.cmt_adapters):
        stride = (c.sam.stride // 2) << i
        if i:
            blocks = NextHiera(sam.trunk, i + 1)
            layers = NextText(tower, *c.text_stages[i - 1 : i + 1])
            out += [
                trunk(f"hiera_{i}", (fused[i - 1],), (maps[i],), blocks, attention_variants(blocks), stride=stride),
                text(f"text_{i}", (fused[i + 2],), (texts[i],), layers),
            ]
        inputs, outputs, variants = (maps[i], texts[i]), (fused[i], fused[i + 3]), attention_variants(adapter)
        attributes: dict[str, Any] = {"role": ADAPTER, "stride": stride}
        out.append(factory(f"adapter_{i}", inputs, outputs, adapter, variants, **attributes))
    return [*out, _neck(model, factory, tuple(fused[:3])), _text_prompt(model, factory, fused[5])]


def adapter_step(whole: Stage, config: SamwiseConfig) -> Stage:
    """Return the stage `adapter_k_step` of a stage `adapter_k`: one frame of low latency, on the same weights."""
    (vision, text), (fused, words) = whole.spec.inputs, whole.spec.outputs
    vision, fused = (replace(t, shape=(1, *t.shape[1:])) for t in (vision, fused))
    level = vision.name.removeprefix("vision_")
    kept = tensor(f"kept_{level}", "kept", *vision.shape[1:3], config.adapter.width)
    narrow = tensor(f"narrow_{level}", 1, *kept.shape[1:])
    module = AdapterStep(cast(AdapterStage, whole.module))
    return stage_factory(config)(
        whole.name + STEP,
        (vision, text, kept, tensor("kept_index", "kept", dtype="int64")),
        (fused, words, narrow),
        module,
        attention_variants(module),
        role=ADAPTER,
        stride=whole.spec.stride,
    )


def _neck(model: Samwise, factory: StageFactory, maps: tuple[TensorSpec, ...]) -> Stage:
    c, sam = model.config.sam, model.sam
    outputs = (
        *(tensor(name, "frames", c.side**2, c.width) for name in ("embedding", "embedding_no_memory")),
        tensor("high_res_1", "frames", c.width // 4, c.side * 2, c.side * 2, bf16_ok=False),
    )
    module = NeckStage(sam.neck, sam.sam_mask_decoder.conv_s1, sam.no_mem_embed)
    return factory("neck", maps, outputs, module, role="neck", stride=c.stride)


def _text_prompt(model: Samwise, factory: StageFactory, text: TensorSpec) -> Stage:
    c = model.config.sam
    verb = (tensor("verb", 1, dtype="int64"),) if c.motion else ()
    sparse = tensor("sparse", 1, 3 + len(verb), c.width)
    module = TextPromptStage(model.sam.sam_prompt_encoder)
    # INT8 saves nothing on one row per sentence
    return factory("text_prompt", (text, *verb), (sparse,), module, role="prompt_encoder", int8_ok=False)


def _index(name: str) -> TensorSpec:
    return tensor(name, "objects", dtype="int64")


def _logits(name: str, size: int | str) -> TensorSpec:
    return tensor(name, "objects", size, size, keep_fp32=True)


def _frame_stages(model: Samwise, factory: StageFactory) -> list[Stage]:
    """Build the stages of a frame, batched over objects."""
    c, sam = model.config.sam, model.sam
    embedding = tensor("embedding", "maps", c.side**2, c.width)
    remembered = (
        tensor("memory", "objects", "slots", c.side**2, c.memory_width),
        tensor("maskmem_tpos_index", "objects", "slots", dtype="int64"),
        tensor("obj_ptrs", "objects", "pointers", c.width),
    )
    narrow, wide = (MemoryAttentionStage(sam.memory_attention, sam.maskmem_tpos_enc, w) for w in (False, True))
    inputs: tuple[TensorSpec, ...] = (embedding, _index("map_index"), *remembered)
    outputs = (tensor("conditioned", "objects", c.side**2, c.width),)
    attributes: dict[str, Any] = {"role": "memory_attention", "bf16_ok": True, "stride": c.stride}
    variants = attention_variants(narrow, wide, FusedMemoryAttentionStage(sam.memory_attention, sam.maskmem_tpos_enc))
    attention = factory("memory_attention", inputs, outputs, narrow, variants, **attributes)
    inputs = embedding, _index("map_index"), _logits("mask_logits", "mask_side")
    outputs = (tensor("maskmem_features", "objects", c.side**2, c.memory_width),)
    module = MemoryEncoderStage(sam.memory_encoder, c.image_size)
    encoder = factory("memory_encoder", inputs, outputs, module, role="memory_encoder", stride=c.stride)
    conditional = [_conditional_memory(model, factory)] if model.config.conditional_hidden else []
    return [attention, _mask_decoder(model, factory), *conditional, encoder]


def _mask_decoder(model: Samwise, factory: StageFactory) -> Stage:
    c, sam = model.config.sam, model.sam
    inputs = (
        tensor("conditioned", "objects", c.side**2, c.width),
        tensor("sparse", "objects", 3 + c.motion, c.width),
        _index("sparse_count"),
        tensor("high_res_0", "pictures", c.width // 8, c.side * 4, c.side * 4, bf16_ok=False),
        _index("picture_index"),
        tensor("high_res_1", "maps", c.width // 4, c.side * 2, c.side * 2, bf16_ok=False),
        _index("map_index"),
    )
    outputs = (
        _logits("low_res_logits", c.side * 4),
        *(tensor(name, "objects", keep_fp32=True) for name in ("iou", "score")),
        *(tensor(name, "objects", c.width) for name in ("obj_ptr", "early_token")),
    )
    module = MaskDecoderStage(sam.sam_mask_decoder, sam.sam_prompt_encoder, sam.obj_ptr_proj, sam.no_pointer, c.side)
    return factory("mask_decoder", inputs, outputs, module, role="mask_decoder", stride=c.stride)


def _conditional_memory(model: Samwise, factory: StageFactory) -> Stage:
    c = model.config.sam
    inputs = (
        *(tensor(name, "objects", c.width) for name in ("obj_ptr", "early_token")),
        *(_logits(name, c.side * 4) for name in ("low_res_logits", "memoryless_logits")),
    )
    outputs = (
        _logits("remembered_logits", c.image_size),
        tensor("decision", "objects", 2, keep_fp32=True),
        tensor("switched", "objects", dtype="bool"),
    )
    module = ConditionalMemoryStage(model.conditional_memory_encoder, c.image_size)
    # INT8 could flip a decision, which changes every later frame
    attributes: dict[str, Any] = {"role": "conditional_memory", "int8_ok": False, "stride": c.stride}
    return factory("conditional_memory", inputs, outputs, module, **attributes)
