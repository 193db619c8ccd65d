"""Settings, bounds and tensors of a SAMWISE bundle."""

from __future__ import annotations

from ...bundle.schema import COUNT, NORMALIZATION, RESIZE, TEXT, Group, nullable, number, whole
from ..base import MASK_DECODER, MEMORY_ATTENTION, Signature

SETTINGS = Group(
    {
        **NORMALIZATION,
        "resize": RESIZE,
        "window": whole(1, 1024),
        # one memory is the frame's own, and a ring needs at least one block
        "memory": Group({"num_maskmem": whole(2, 65_536), "max_obj_ptrs": COUNT}),
        "conditional_memory": nullable(Group({"first": whole(0, 1 << 31), "every": whole(1, 1 << 31)})),
        "text": TEXT,
        "no_object_logit": number,
    }
)

SIGNATURE = Signature(
    bounds=("objects",),
    tensors={
        **MEMORY_ATTENTION,
        **MASK_DECODER,
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
        **{f"{kind}_{k}": f"t {side} {side} Z" for k, side in enumerate("ABJ") for kind in ("kept", "narrow")},
        "kept_index": "int64: k",
        "verb": "int64: v",
        "sparse": "b P D",
        "iou": "b",
        "early_token": "b D",
        "memoryless_logits": "b S S",
        "remembered_logits": "b I I",
        "decision": "b 2",
        "switched": "bool: b",
    },
    inputs={
        "hiera_0": "pixels",
        "memory_attention": "embedding memory maskmem_tpos_index obj_ptrs",
        "mask_decoder": "sparse high_res_0 high_res_1",
        "memory_encoder": "mask_logits",
        **{f"adapter_{k}_step": f"kept_{k} kept_index" for k in range(3)},
    },
    outputs={
        "hiera_0": "vision_0 high_res_0",
        "neck": "embedding embedding_no_memory high_res_1",
        "text_prompt": "sparse",
        "mask_decoder": "low_res_logits iou score obj_ptr early_token",
        "memory_encoder": "maskmem_features",
        **{f"adapter_{k}_step": f"narrow_{k}" for k in range(3)},
        "memory_attention": "conditioned",
        "conditional_memory": "remembered_logits decision switched",
    },
)
