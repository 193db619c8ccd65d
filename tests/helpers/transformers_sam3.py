"""Small SAM 3 networks of transformers with seeded weights, and a brute-force ROI align (torchvision is not needed)."""

from __future__ import annotations

import math
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.models.sam3 import configuration_sam3
from transformers.models.sam3_video import configuration_sam3_video

from export.checkpoints import sam3 as checkpoints
from export.checkpoints import sam3_hugging_face
from export.models.sam3 import Sam3
from export.networks.sam3 import stages
from export.stage import Stage

# the package's attributes are placeholders where torchvision is missing
modeling_sam3 = import_module("transformers.models.sam3.modeling_sam3")
modeling_sam3_video = import_module("transformers.models.sam3_video.modeling_sam3_video")

SIDE, PATCH, WINDOW, WIDTH, TOKENS = 8, 14, 4, 64, 8
VOCABULARY = 60


def detector_config(side: int = SIDE) -> configuration_sam3.Sam3Config:
    """Sizes with every part of the published network, `side` patches wide. Its norms have the official epsilon."""
    norm = {"layer_norm_eps": 1e-5}
    part = {"hidden_size": WIDTH, "num_attention_heads": 2, **norm}
    layers = {**part, "intermediate_size": 48, "dropout": 0.0}
    trunk = {
        "model_type": "sam3_vit_model",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": side * PATCH,
        "patch_size": PATCH,
        "window_size": WINDOW,
        "pretrain_image_size": WINDOW * PATCH,
        "global_attn_indexes": [1, 3],
        **norm,
    }
    vision = {
        "backbone_config": trunk,
        "fpn_hidden_size": WIDTH,
        "backbone_feature_sizes": [[n * side, n * side] for n in (4, 2, 1)],
        **norm,
    }
    text = {
        "model_type": "clip_text_model",
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 48,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "hidden_act": "gelu",
        "eos_token_id": VOCABULARY - 1,
    }
    return configuration_sam3.Sam3Config(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config={**layers, "num_layers": 2},
        detr_encoder_config={**layers, "num_layers": 2},
        detr_decoder_config={**layers, "num_layers": 3, "num_queries": 10},
        mask_decoder_config=part,
    )


def video_config() -> configuration_sam3_video.Sam3VideoConfig:
    """The detector above and a tracker."""
    detector = detector_config().to_dict()
    tracker: dict[str, Any] = {
        "model_type": "sam3_tracker_video",
        "vision_config": detector["vision_config"],
        "image_size": SIDE * PATCH,
        "prompt_encoder_config": {"hidden_size": WIDTH, "image_size": SIDE * PATCH, "mask_input_channels": 8},
        "mask_decoder_config": {
            "hidden_size": WIDTH,
            "mlp_dim": 48,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 24,
        },
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 48,
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 4 * WIDTH,
    }
    return configuration_sam3_video.Sam3VideoConfig(detector_config=detector, tracker_config=tracker)


TABLES = ("_embed.weight", "_embedding.weight", "_token.weight", "_points.weight", "position_embeddings")


def seeded(model: torch.nn.Module) -> Any:
    """Give every parameter a random value of a size at which it matters."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            random = torch.randn(value.shape, generator=generator)
            if value.dim() == 1:
                value.copy_((1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.1 * random)
            else:
                value.copy_(random if name.endswith(TABLES) else random * value[0].numel() ** -0.5)
    return model.eval()


def detector(side: int = SIDE) -> torch.nn.Module:
    modeling_sam3.torchvision = SimpleNamespace(ops=SimpleNamespace(roi_align=_roi_align))
    return seeded(modeling_sam3.Sam3Model(detector_config(side)))


def video_model() -> torch.nn.Module:
    model = seeded(modeling_sam3_video.Sam3VideoModel(video_config()))
    tracker = model.tracker_model
    with torch.no_grad():  # one matrix under two names
        tracker.prompt_encoder.shared_embedding.positional_embedding.copy_(
            tracker.shared_image_embedding.positional_embedding
        )
    return model


def _roi_align(maps: torch.Tensor, boxes: Any, side: int) -> torch.Tensor:
    """The function of torchvision with its defaults: boxes of each map in a list."""
    pooled = [
        roi_align(m.double().numpy(), b, side) for m, rows in zip(maps, boxes, strict=True) for b in rows.tolist()
    ]
    return torch.from_numpy(np.stack(pooled)).to(maps.dtype)


def roi_align(maps: np.ndarray, box: list[float], side: int) -> np.ndarray:
    """Average (C,H,W) over the bins of a box x0, y0, x1, y1, one sampling point after the other: (C,side,side)."""
    x0, y0, x1, y1 = box
    width, height = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
    columns, rows = math.ceil(width / side), math.ceil(height / side)
    out = np.zeros((maps.shape[0], side, side))
    for i, j in np.ndindex(side, side):
        for r, c in np.ndindex(rows, columns):
            y = y0 + (i + (r + 0.5) / rows) * height / side
            x = x0 + (j + (c + 0.5) / columns) * width / side
            out[:, i, j] += _bilinear(maps, y, x)
    return out / (rows * columns)


def _bilinear(maps: np.ndarray, y: float, x: float) -> np.ndarray:
    h, w = maps.shape[1:]
    if not (-1 <= y <= h and -1 <= x <= w):
        return np.zeros(maps.shape[0])
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    dy, dx = y - top, x - left
    upper = maps[:, top, left] * (1 - dx) + maps[:, top, right] * dx
    lower = maps[:, bottom, left] * (1 - dx) + maps[:, bottom, right] * dx
    return upper * (1 - dy) + lower * dy


def stages_of(theirs: Any) -> dict[str, Stage]:
    """Return the stages of our network with the weights of theirs."""
    tensors = sam3_hugging_face.renamed(theirs.state_dict())
    config = checkpoints.sam3_config(tensors, sam3_hugging_face.hidden_sizes(theirs.config.to_dict()))
    model = Sam3(config)
    checkpoints.load_tensors(model, tensors, "toy", checkpoints.UNUSED)
    return {stage.name: stage for stage in stages(model)}
