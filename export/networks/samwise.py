"""Where SAMWISE is cut: signatures, sample inputs and forms of its stages. See `docs/architecture.md` for the
reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.bundle.manifest import TensorSpec

from ..checkpoints.samwise import load_samwise
from ..models.samwise import Samwise, SamwiseConfig
from ..stage import Form, Stage, stage, tensor
from ..stages.conditional_memory import ConditionalMemoryStage
from ..stages.cross_modal_adapter import AdapterStage
from ..stages.hiera import FirstHiera, NextHiera
from ..stages.mask_decoder import NO_OBJECT_LOGIT, MaskDecoderStage
from ..stages.memory_attention import MemoryAttentionStage
from ..stages.memory_encoder import MemoryEncoderStage
from ..stages.neck import NeckStage
from ..stages.prompt_encoder import TextPromptStage
from ..stages.text_encoder import FirstText, NextText

SCALES = {
    "pixels": 1.0,
    "memory": 2.0,
    "low_res_logits": 5.0,
    "memoryless_logits": 5.0,
    "mask_logits": 5.0,
    "embedding": 2.0,
}
"""Standard deviation of sample inputs, about that of real ones; 1 where not named."""

BATCH = 16
"""Most objects, maps and pictures in one call."""

SIZES = {"frames": 3, "tokens": 6, "objects": 2, "maps": 4, "pictures": 3, "slots": 3, "pointers": 5}


def sampler(inputs: tuple[TensorSpec, ...], limits: Mapping[str, int | str]) -> Callable[..., dict[str, Tensor]]:
    """Samples floats from a normal of `SCALES`, integers below `limits` (a number or a symbol's size)."""

    def sample(sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        def one(spec: TensorSpec) -> Tensor:
            shape = spec.resolve(sizes)
            if spec.dtype == "int64":
                limit = limits[spec.name]
                high = sizes[limit] if isinstance(limit, str) else limit
                return torch.randint(0, high, shape, generator=generator)
            return SCALES.get(spec.name, 1.0) * torch.randn(shape, generator=generator)

        return {spec.name: one(spec) for spec in inputs}

    return sample


def bounds(config: SamwiseConfig) -> dict[str, tuple[int, int]]:
    """Lowest and highest value of every symbol."""
    batch = (1, BATCH)
    return {
        "frames": (1, config.window),
        "tokens": (1, config.text.max_tokens),
        "objects": batch,
        "maps": batch,
        "pictures": batch,
        "slots": (1, config.slots),
        "pointers": (1, config.pointers),
        "mask_side": (config.sam.image_size // 4, config.sam.image_size),
    }


def typical(config: SamwiseConfig) -> dict[str, int]:
    """Sizes that an engine is tuned for: one object, a sentence of 14 words, a full memory."""
    return {"objects": 1, "maps": 1, "pictures": 1, "tokens": 16, "slots": config.slots, "pointers": config.pointers}


def _stage(
    model: Samwise,
    limits: Mapping[str, int | str],
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    module: torch.nn.Module,
    wide: torch.nn.Module | None = None,
    attention: bool = False,
    **attributes: Any,
) -> Stage:
    """One stage; `wide` is its module for TensorRT where that differs."""
    c = model.config
    sizes = SIZES | {"mask_side": 3 * c.sam.image_size // 8}
    forms = {"ort": Form(module, "ort"), "trt": Form(wide or module, "plain")} if attention else {}
    attributes |= {"attention": attention, "typical": typical(c)}
    return stage(name, inputs, outputs, module, sampler(inputs, limits), bounds(c), sizes, forms, **attributes)


def stages(model: Samwise) -> list[Stage]:
    """All stages of a network, in the order of a frame's way through it. Puts the network in eval mode."""
    model.eval()
    c = model.config
    limits = {
        "tokens": c.text.vocabulary,
        "verb": "tokens",
        "map_index": "maps",
        "picture_index": "pictures",
        "maskmem_tpos_index": c.slots,
        "sparse_count": 3,
    }
    cut = partial(_stage, model, limits)
    return [*_clip_stages(model, cut), *_frame_stages(model, cut)]


def _clip_stages(model: Samwise, cut: Callable[..., Stage]) -> list[Stage]:
    c, sam, tower = model.config, model.sam, model.tower
    side, width, words = c.sam.side, c.sam.width, c.text.width
    maps = [
        tensor(f"vision_{i}", "frames", side * 2 >> i, side * 2 >> i, w) for i, w in enumerate(c.sam.hiera.widths[1:])
    ]
    texts = [tensor(f"text_{i}", "tokens", words) for i in range(3)]
    fused = [tensor(f"{t.name}_fused", *t.shape) for t in (*maps, *texts)]
    pixels = tensor("pixels", "frames", 3, c.sam.image_size, c.sam.image_size, keep_fp32=True)
    fine = tensor("high_res_0", "frames", width // 8, side * 4, side * 4, bf16_ok=False)
    first = FirstHiera(sam.trunk, sam.neck.lateral(0), sam.sam_mask_decoder.conv_s0, c.sam.image_size)
    trunk = partial(cut, role="hiera", attention=True, bf16_ok=True)
    text = partial(cut, role="text_encoder")
    tokens = tensor("tokens", "tokens", dtype="int64")
    out = [
        trunk("hiera_0", (pixels,), (maps[0], fine), first, stride=c.sam.stride // 2),
        text("text_0", (tokens,), (texts[0],), FirstText(tower, c.text_stages[0])),
    ]
    for i, adapter in enumerate(model.cmt_adapters):
        stride = (c.sam.stride // 2) << i
        if i:
            out.append(trunk(f"hiera_{i}", (fused[i - 1],), (maps[i],), NextHiera(sam.trunk, i + 1), stride=stride))
            layers = NextText(tower, *c.text_stages[i - 1 : i + 1])
            out.append(text(f"text_{i}", (fused[i + 2],), (texts[i],), layers))
        both = (maps[i], texts[i]), (fused[i], fused[i + 3])
        adapter_ = AdapterStage(adapter)
        out.append(cut(f"adapter_{i}", *both, adapter_, role="cross_modal_adapter", attention=True, stride=stride))
    embeddings = tuple(tensor(n, "frames", side * side, width) for n in ("embedding", "embedding_no_memory"))
    fine = tensor("high_res_1", "frames", width // 4, side * 2, side * 2, bf16_ok=False)
    neck = NeckStage(sam.neck, sam.sam_mask_decoder.conv_s1, sam.no_mem_embed)
    verb = (tensor("verb", 1, dtype="int64"),) if c.sam.motion else ()
    sparse = tensor("sparse", 1, 3 + len(verb), width)
    out.append(cut("neck", tuple(fused[:3]), (*embeddings, fine), neck, role="neck", stride=c.sam.stride))
    prompt = TextPromptStage(sam.sam_prompt_encoder)
    # INT8 saves nothing on one row per sentence
    out.append(cut("text_prompt", (fused[5], *verb), (sparse,), prompt, role="prompt_encoder", int8_ok=False))
    return out


def _frame_stages(model: Samwise, cut: Callable[..., Stage]) -> list[Stage]:
    c, sam = model.config, model.sam
    side, width, memory, image = c.sam.side, c.sam.width, c.sam.memory_width, c.sam.image_size

    def index(name: str) -> TensorSpec:
        return tensor(name, "objects", dtype="int64")

    def logits(name: str, size: int | str = side * 4) -> TensorSpec:
        return tensor(name, "objects", size, size, keep_fp32=True)

    embedding = tensor("embedding", "maps", side * side, width)
    conditioned = tensor("conditioned", "objects", side * side, width)
    pointer, early = tensor("obj_ptr", "objects", width), tensor("early_token", "objects", width)
    slots = (
        tensor("memory", "objects", "slots", side * side, memory),
        tensor("maskmem_tpos_index", "objects", "slots", dtype="int64"),
        tensor("obj_ptrs", "objects", "pointers", width),
    )
    attention = [MemoryAttentionStage(sam.memory_attention, sam.maskmem_tpos_enc, wide) for wide in (False, True)]
    decoder = MaskDecoderStage(sam.sam_mask_decoder, sam.sam_prompt_encoder, sam.obj_ptr_proj, sam.no_pointer, side)
    prompt = (tensor("sparse", "objects", 3 + c.sam.motion, width), index("sparse_count"))
    fine = (
        tensor("high_res_0", "pictures", width // 8, side * 4, side * 4, bf16_ok=False),
        index("picture_index"),
        tensor("high_res_1", "maps", width // 4, side * 2, side * 2, bf16_ok=False),
        index("map_index"),
    )
    iou, score = (tensor(name, "objects", keep_fp32=True) for name in ("iou", "score"))
    cut = partial(cut, stride=c.sam.stride)
    out = [
        cut(
            "memory_attention",
            (embedding, index("map_index"), *slots),
            (conditioned,),
            *attention,
            role="memory_attention",
            attention=True,
            bf16_ok=True,
        ),
        cut(
            "mask_decoder",
            (conditioned, *prompt, *fine),
            (logits("low_res_logits"), iou, score, pointer, early),
            decoder,
            role="mask_decoder",
        ),
        cut(
            "memory_encoder",
            (embedding, index("map_index"), logits("mask_logits", "mask_side")),
            (tensor("maskmem_features", "objects", side * side, memory),),
            MemoryEncoderStage(sam.memory_encoder, image),
            role="memory_encoder",
        ),
    ]
    if c.conditional_hidden:
        conditional = ConditionalMemoryStage(model.conditional_memory_encoder, image)
        out.insert(
            2,
            cut(
                "conditional_memory",
                (pointer, early, logits("low_res_logits"), logits("memoryless_logits")),
                (
                    logits("remembered_logits", image),
                    tensor("decision", "objects", 2, keep_fp32=True),
                    tensor("switched", "objects", dtype="bool"),
                ),
                conditional,
                role="conditional_memory",
                int8_ok=False,  # a decision that flips changes every later frame
            ),
        )
    return out


def settings(model: Samwise) -> dict[str, Any]:
    """Settings by network; see `docs/architecture.md`, "Settings of a manifest"."""
    c = model.config
    size = c.sam.image_size
    own = {
        "window": c.window,
        # the official video transform aims the short side at 1020 of 1024; networks of other sizes fill their picture
        "resize": {"rule": "samwise_video", "short": 1020 if size == 1024 else size, "max": size},
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        # the reference counts the frame itself among both
        "memory": {"num_maskmem": c.slots + 1, "max_obj_ptrs": c.pointers + 1},
        "conditional_memory": {"first": 5, "every": 3} if c.conditional_hidden else None,
        "text": {"max_tokens": c.text.max_tokens, "vocabulary": c.text.vocabulary, "motion": c.sam.motion},
        "no_object_logit": NO_OBJECT_LOGIT,
    }
    return {"samwise": own}


def load(path: str | Path) -> Samwise:
    """The network of a checkpoint. Raises UserError for a file that is not a whole SAMWISE checkpoint."""
    return load_samwise(path)
