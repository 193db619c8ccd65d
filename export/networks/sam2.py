"""SAM 2 and SAM 2.1 for export: checkpoint, stages, settings and parity clip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runtime.bundle.manifest import TensorSpec

from ..checkpoints.sam2 import load_sam2
from ..models.sam import Sam
from ..models.sam2 import Sam2, Sam2Config
from ..stage import Form, Stage, stage, tensor
from ..stages.image_encoder import ImageEncoderStage
from ..stages.mask_decoder import NO_OBJECT_LOGIT
from ..stages.memory_attention import MemoryAttentionStage
from ..stages.memory_encoder import PromptMemoryStage
from ..stages.prompt_decoder import MaskPromptStage, PromptDecoderStage, PromptEncoderStage
from ..verify.references import sam2_clip

BATCH = 16
"""Most objects, maps and pictures in one call."""


FRAMES = 8
"""Most pictures that are encoded in one call."""


POINTS = 64
"""Most tokens of a prompt, its padding point included."""


SLOTS, POINTERS = 32, 48
"""Most maps and pointers that one object looks at: 6 recent ones and 26 conditioning frames."""


SIZES = {"frames": 3, "objects": 2, "maps": 4, "pictures": 3, "slots": 3, "pointers": 5, "prompt_tokens": 7}


SCALES = {"memory": 2.0, "mask_logits": 5.0, "prompt_logits": 5.0, "embedding": 2.0, "conditioned": 1.0, "dense": 0.5}
"""Standard deviation of sample inputs, about that of real ones; 1 where not named."""


def load(path: str | Path) -> Sam2:
    """An official checkpoint or a Hugging Face folder, in eval mode. Raises UserError."""
    return load_sam2(path)


def clip(model: Any, numbers: Mapping[str, Any], *clip: Any) -> Any:
    """See `export.verify.references.sam2_clip`."""
    return sam2_clip(model, numbers, *clip)


def settings(model: Any) -> dict[str, Any]:
    """Settings by network; see `docs/architecture.md`, "Settings of a manifest"."""
    config = model.config
    size = config.sam.image_size
    pointers = (config if isinstance(config, Sam2Config) else Sam2Config()).pointers
    own = {
        "resize": {"rule": "square", "short": size, "max": size},
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "memory": {"num_maskmem": config.sam.ages, "max_obj_ptrs": pointers},
        "resample": {"video": "bicubic", "image": "float"},
        "no_object_logit": NO_OBJECT_LOGIT,
    }
    return {"sam2": own}


def bounds(model: Any) -> dict[str, tuple[int, int]]:
    """Lowest and highest value of every symbol."""
    batch, size = (1, BATCH), model.config.sam.image_size
    return {
        "frames": (1, getattr(model.config, "window", FRAMES)),
        "objects": batch,
        "maps": batch,
        "pictures": batch,
        "slots": (1, SLOTS),
        "pointers": (0, POINTERS),
        "prompt_tokens": (1, POINTS),
        "mask_side": (size // 4, size),
    }


def sampler(inputs: tuple[TensorSpec, ...], config: Any) -> Callable[..., dict[str, Tensor]]:
    """Inputs of realistic scale: points inside the picture, labels that exist, indices within their arrays."""

    def sample(sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        ranges = {
            "labels": (-1, 4),
            "sparse_count": (0, sizes.get("prompt_tokens", 0) + 1),
            "maskmem_tpos_index": (0, config.sam.ages),
            "map_index": (0, sizes.get("maps", 1)),
            "picture_index": (0, sizes.get("pictures", 1)),
        }

        def one(spec: TensorSpec) -> Tensor:
            shape = spec.resolve(sizes)
            if spec.dtype == "bool" or spec.name == "mask":
                drawn = torch.randint(0, 2, shape, generator=generator)
                return drawn.bool() if spec.dtype == "bool" else drawn.float()
            if spec.dtype == "int64":
                return torch.randint(*ranges[spec.name], shape, generator=generator)
            if spec.name in ("points", "obj_ptr_tpos"):
                top = config.sam.image_size if spec.name == "points" else 1.0
                return top * torch.rand(shape, generator=generator)
            return SCALES.get(spec.name, 1.0) * torch.randn(shape, generator=generator)

        return {spec.name: one(spec) for spec in inputs}

    return sample


def _cut(
    model: Any,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    module: nn.Module,
    forms: Mapping[str, Form] | None = None,
    **attributes: Any,
) -> Stage:
    c = model.config
    sizes = SIZES | {"mask_side": 3 * c.sam.image_size // 8}
    memory = settings(model)["sam2"]["memory"]
    # what an engine is tuned for: one object, two clicks, a full memory
    typical = {"objects": 1, "maps": 1, "pictures": 1, "prompt_tokens": 4}
    typical |= {"slots": memory["num_maskmem"], "pointers": memory["max_obj_ptrs"]}
    attributes |= {"typical": typical, "attention": bool(forms)}
    return stage(name, inputs, outputs, module, sampler(inputs, c), bounds(model), sizes, forms, **attributes)


def stages(model: Any) -> list[Stage]:
    """The network cut into stages, in the order of a frame's way through them. Puts it in eval mode."""
    model.eval()
    cut = partial(_cut, model)
    return [_image_encoder(model.sam, cut), *_prompts(model.sam, cut), *_memory(model.sam, cut)]


def _objects(name: str, *shape: int | str, dtype: str = "float32", **attributes: bool) -> TensorSpec:
    return tensor(name, "objects", *shape, dtype=dtype, **attributes)


_exact = partial(_objects, keep_fp32=True)
"""Read by the schedule on the host, compared with zero, or a position in the image."""


def _image_encoder(sam: Sam, cut: Callable[..., Stage]) -> Stage:
    c, decoder = sam.config, sam.sam_mask_decoder
    side, size = c.side, c.image_size
    module = ImageEncoderStage(sam.trunk, sam.neck, decoder.conv_s0, decoder.conv_s1, sam.no_mem_embed, size)
    outputs = (
        *(tensor(n, "frames", side * side, c.width) for n in ("embedding", "embedding_no_memory")),
        tensor("high_res_0", "frames", c.width // 8, side * 4, side * 4, bf16_ok=False),
        tensor("high_res_1", "frames", c.width // 4, side * 2, side * 2, bf16_ok=False),
    )
    return cut(
        "image_encoder",
        (tensor("pixels", "frames", 3, size, size, keep_fp32=True),),
        outputs,
        module,
        {"ort": Form(module, "ort"), "trt": Form(module, "plain")},
        role="image_encoder",
        bf16_ok=True,
        stride=c.stride,
    )


def _prompts(sam: Sam, cut: Callable[..., Stage]) -> list[Stage]:
    c = sam.config
    side, low, size, width = c.side, c.side * 4, c.image_size, c.width
    sparse, dense = _objects("sparse", "prompt_tokens", width), _objects("dense", side * side, width)
    encoder = PromptEncoderStage(sam.sam_prompt_encoder)
    decoder = PromptDecoderStage(sam.sam_mask_decoder, sam.sam_prompt_encoder, sam.obj_ptr_proj, sam.no_pointer, side)
    prompt = (
        _exact("points", "prompt_tokens", 2),
        _objects("labels", "prompt_tokens", dtype="int64"),
        _exact("prompt_logits", low, low),
        _objects("has_mask", dtype="bool"),
    )
    picture = (
        tensor("high_res_0", "pictures", width // 8, low, low, bf16_ok=False),
        _objects("picture_index", dtype="int64"),
        tensor("high_res_1", "maps", width // 4, side * 2, side * 2, bf16_ok=False),
        _objects("map_index", dtype="int64"),
    )
    return [
        # INT8 saves nothing on a few rows of coordinates
        cut("prompt_encoder", prompt, (sparse, dense), encoder, role="prompt_encoder", int8_ok=False),
        cut(
            "mask_prompt",
            (_exact("mask", size, size),),
            (_exact("mask_logits", low, low), _exact("prompt_logits", low, low)),
            MaskPromptStage(sam.mask_downsample, size),
            role="mask_prompt",
            int8_ok=False,  # its products are resampling and permutation matrices, not learned weights
        ),
        cut(
            "prompt_decoder",
            (
                _objects("conditioned", side * side, width),
                sparse,
                _objects("sparse_count", dtype="int64"),
                dense,
                *picture,
                _objects("multimask", dtype="bool"),
            ),
            (
                _exact("low_res_logits", low, low),
                _exact("all_logits", 4, low, low),
                _exact("ious", 4),
                _objects("selected", dtype="int64"),
                _exact("score"),
                _objects("obj_ptr", width),
            ),
            decoder,
            role="mask_decoder",
            stride=c.stride,
        ),
    ]


def _memory(sam: Sam, cut: Callable[..., Stage]) -> list[Stage]:
    c = sam.config
    side, memory = c.side, c.memory_width
    embedding, index = tensor("embedding", "maps", side * side, c.width), _objects("map_index", dtype="int64")
    projection = sam.obj_ptr_tpos_proj if c.pointer_positions else None
    narrow, wide = (
        MemoryAttentionStage(sam.memory_attention, sam.maskmem_tpos_enc, w, projection) for w in (False, True)
    )
    remembered = (
        _objects("memory", "slots", side * side, memory),
        _objects("maskmem_tpos_index", "slots", dtype="int64"),
        _objects("obj_ptrs", "pointers", c.width),
    )
    distance = (_exact("obj_ptr_tpos", "pointers"),) if c.pointer_positions else ()
    score = (_exact("score"),) if c.pointer_positions else ()
    absent = sam.no_obj_embed_spatial if c.pointer_positions else None
    return [
        cut(
            "memory_attention",
            (embedding, index, *remembered, *distance),
            (_objects("conditioned", side * side, c.width),),
            narrow,
            {"ort": Form(narrow, "ort"), "trt": Form(wide, "plain")},
            role="memory_attention",
            bf16_ok=True,
            stride=c.stride,
        ),
        cut(
            "prompt_memory_encoder",
            (
                embedding,
                index,
                _exact("mask_logits", "mask_side", "mask_side"),
                _objects("binarize", dtype="bool"),
                *score,
            ),
            (_objects("maskmem_features", side * side, memory),),
            PromptMemoryStage(sam.memory_encoder, c.image_size, absent),
            role="memory_encoder",
            stride=c.stride,
        ),
    ]
