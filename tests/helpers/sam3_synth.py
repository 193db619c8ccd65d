"""Weights and clips of the recorded SAM 3 cases, from numpy alone.

Every number is a function of the name of its tensor and a seed (see `synth.py`): two machines make the same bits.
The rule of an entry depends on its name and shape, which are those of the official checkpoint: `detector.`, `tracker.`.
"""

from __future__ import annotations

import numpy as np

from .synth import normal, raw, triangle


def uniform_int(name: str, seed: int, n: int, low: int, high: int) -> list[int]:
    """n integers in [low, high)."""
    return [low + int(v % np.uint64(high - low)) for v in raw(name, seed, n)]


# Added to the named entry (exact name): one number for all elements, or a list
# broadcast over the last axis.  make_state_dict's third argument adds to /
# overrides this table.
OFFSETS = {
    # start boxes (cx, cy, w, h before the sigmoid): smaller than half the image
    "transformer.decoder.reference_points.weight": [0.0, 0.0, -1.2, -1.2],
    "transformer.decoder.presence_token_head.layers.2.bias": -0.4,
}

# These entries draw their numbers under another name (the suffix is appended).
# Picked among a few thousand so that scores and presence lie on both sides of
# the threshold.
SALTS = {"transformer.decoder.presence_token_head.layers.2.weight": "#608", "dot_prod_scoring.hs_proj.weight": "#2277"}

# Multipliers on top of fan-in scaling: (substring, suffix, gain), first match wins.
GAINS = [
    # vision trunk: residual branches weak enough that 32 layers keep the picture
    ("vision_backbone.trunk.patch_embed", ".weight", 2.0),
    ("vision_backbone.trunk.blocks", "attn.proj.weight", 0.8),
    ("vision_backbone.trunk.blocks", "mlp.fc2.weight", 0.6),
    # neck
    ("vision_backbone.convs", "conv_1x1.weight", 0.35),
    ("vision_backbone.convs", "dconv_2x2_1.weight", 1.4),
    # text tower
    ("language_backbone.encoder.transformer", "attn.out_proj.weight", 0.8),
    ("language_backbone.encoder.transformer", "mlp.c_proj.weight", 0.6),
    # the prompt has to matter: cross-attention to it
    # (encoder and decoder branches are weak enough that positions and queries
    # stay different from each other)
    ("transformer.encoder.layers", "cross_attn_image.out_proj.weight", 0.6),
    ("transformer.encoder.layers", "self_attn.out_proj.weight", 0.35),
    ("transformer.encoder.layers", "linear2.weight", 0.4),
    ("transformer.encoder.layers", "in_proj_weight", 1.2),
    ("transformer.decoder.layers", "ca_text.out_proj.weight", 0.25),
    ("transformer.decoder.layers", "self_attn.out_proj.weight", 0.25),
    ("transformer.decoder.layers", "cross_attn.out_proj.weight", 0.2),
    ("transformer.decoder.layers", "linear2.weight", 0.25),
    ("transformer.decoder.layers", "in_proj_weight", 1.2),
    ("segmentation_head.cross_attend_prompt", "out_proj.weight", 1.5),
    # exemplar boxes: pooled pixels and coordinates at comparable strength
    ("geometry_encoder.boxes_pool_project", ".weight", 1.4),
    ("geometry_encoder.boxes_direct_project", ".weight", 1.4),
    # decoder: box bias strong enough to steer attention, small box steps
    ("transformer.decoder.boxRPB_embed", "layers.0.weight", 2.0),
    ("transformer.decoder.boxRPB_embed", "layers.1.weight", 3.5),
    ("transformer.decoder.bbox_embed", "layers.2.weight", 0.2),
    ("transformer.decoder.bbox_embed", ".weight", 1.4),
    ("transformer.decoder.ref_point_head", ".weight", 1.4),
    ("transformer.decoder.presence_token_head", ".weight", 1.4),
    # masks
    ("segmentation_head.mask_predictor.mask_embed", ".weight", 1.4),
    ("segmentation_head.instance_seg_head", ".weight", 1.4),
    ("segmentation_head.semantic_seg_head", ".weight", 4.0),
    ("segmentation_head.pixel_decoder.conv_layers", ".weight", 1.4),
    # scores
    ("dot_prod_scoring.prompt_mlp.layers", ".weight", 1.4),
    ("dot_prod_scoring.hs_proj", ".weight", 2.5),
    ("dot_prod_scoring.prompt_proj", ".weight", 1.5),
]

# Standard deviation of free parameters and embeddings (not fan-in scaled).
FREE_STD = [
    ("trunk.pos_embed", 0.30),
    ("token_embedding.weight", 1.00),
    ("positional_embedding", 0.15),
    ("text_projection", 0.03),
    ("label_embed.weight", 1.00),
    ("cls_embed.weight", 1.00),
    ("decoder.query_embed.weight", 1.00),
    ("decoder.reference_points.weight", 1.00),
    ("decoder.presence_token.weight", 1.00),
]


def _gain(name: str) -> float:
    name = name.replace("vision_backbone.sam2_convs", "vision_backbone.convs")
    for a, b, g in GAINS:
        if a in name and name.endswith(b):
            return g
    return 1.0


def _rule(name: str, shape: tuple, seed: int, offsets: dict) -> np.ndarray:
    last = name.rsplit(".", 1)[-1]
    f32 = np.float32
    z = normal(name + SALTS.get(name, ""), seed, shape)
    offset = np.asarray(offsets.get(name, 0.0), f32)

    # --- free parameters and embeddings
    for key, std in FREE_STD:
        if key in name:
            z *= f32(std)
            return z + offset

    # --- biases
    if last in ("bias", "in_proj_bias"):
        return z * f32(0.05) + offset

    # --- norm weights (LayerNorm, GroupNorm): all other 1-D entries
    if len(shape) == 1:
        return f32(1.0) + z * f32(0.05) + offset

    # --- linear and convolution weights, fan-in scaled
    if "dconv_2x2" in name:  # transposed: (in, out, kh, kw)
        fan_in = shape[0]
        # mostly the same value for every sub-pixel: smooth upsampling
        base = normal(name + "#base", seed, (*shape[:2], 1, 1))
        z = base * f32(0.98) + z * f32(0.2)
    else:
        fan_in = 1
        for s in shape[1:]:
            fan_in *= s
    z *= f32(_gain(name) / fan_in**0.5)
    if last == "in_proj_weight" or name.endswith("attn.qkv.weight"):  # packed q, k, v
        third = shape[0] // 3
        z[: 2 * third] *= f32(1.5)
    return z


TRACKER_OFFSETS = {
    # last layer of the object-presence head: the object is usually present
    "sam_mask_decoder.pred_obj_score_head.layers.2.bias": 3.0
}

TRACKER_GAINS = [
    ("transformer.encoder.layers", "cross_attn_image.v_proj.weight", 1.5),
    ("transformer.encoder.layers", "cross_attn_image.out_proj.weight", 1.5),
    ("sam_mask_decoder.transformer", ".v_proj.weight", 1.2),
    ("output_hypernetworks_mlps", "layers.2.weight", 5.0),
    ("output_hypernetworks_mlps", ".weight", 1.4),
    ("iou_prediction_head", "layers.2.weight", 3.5),
    ("iou_prediction_head", ".weight", 1.4),
    ("pred_obj_score_head", ".weight", 1.4),
    ("obj_ptr_proj", "layers.2.weight", 4.2),
    ("obj_ptr_proj", ".weight", 1.4),
    ("obj_ptr_tpos_proj", ".weight", 3.0),
    ("maskmem_backbone.mask_downsampler.encoder.12", ".weight", 3.0),
    ("maskmem_backbone.pix_feat_proj", ".weight", 0.5),
    ("sam_mask_decoder.conv_s0", ".weight", 0.4),
    ("sam_mask_decoder.conv_s1", ".weight", 0.5),
]

TRACKER_STD = [
    ("positional_encoding_gaussian_matrix", 1.0),
    ("maskmem_tpos_enc", 0.30),
    ("no_mem_embed", 0.20),
    ("no_mem_pos_enc", 0.20),
    ("no_obj_ptr", 0.50),
    ("no_obj_embed_spatial", 0.50),
    ("not_a_point_embed.weight", 0.30),
    ("point_embeddings", 0.50),
    ("no_mask_embed.weight", 0.20),
    ("iou_token.weight", 0.50),
    ("mask_tokens.weight", 0.50),
    ("obj_score_token.weight", 0.50),
]


def _tracker_rule(name: str, shape: tuple, seed: int, offsets: dict) -> np.ndarray:
    """Like `_rule`, for the entries below "tracker." (prefix removed)."""
    last = name.rsplit(".", 1)[-1]
    f32 = np.float32
    z = normal("tracker." + name, seed, shape)
    if name == "mask_downsample.weight":  # 0/1 mask -> about -10/+10
        return f32(1.25) + z * f32(0.25)
    if name == "mask_downsample.bias":
        return f32(-10.0) + z * f32(0.05)
    for key, std in TRACKER_STD:
        if key in name:
            return z * f32(std)
    if last == "gamma":  # ConvNeXt layer scale
        return f32(0.5) + z * f32(0.1)
    if last == "bias":
        return z * f32(0.05) + np.asarray(offsets.get(name, 0.0), f32)
    if len(shape) == 1:
        return f32(1.0) + z * f32(0.05)
    if name.endswith(("output_upscaling.0.weight", "output_upscaling.3.weight")):
        fan_in = shape[0]
        base = normal("tracker." + name + "#base", seed, (*shape[:2], 1, 1))
        z = base * f32(0.98) + z * f32(0.2)
    else:
        fan_in = 1
        for s in shape[1:]:
            fan_in *= s
    gain = next((g for a, b, g in TRACKER_GAINS if a in name and name.endswith(b)), 1.0)
    return z * f32(gain / fan_in**0.5)


def rotary_table(shape) -> np.ndarray:
    """complex64 [N, 32]: the constant behind an `attn.freqs_cis` entry (N = 576: window, else global)."""
    side = round(shape[0] ** 0.5)
    k = np.arange(0, 64, 4, dtype=np.float32)[:16]
    f = (1.0 / np.power(np.float32(10000.0), k / np.float32(64))).astype(np.float32)
    step = np.float32(1.0 if side == 24 else 24.0 / side)
    at = np.arange(side, dtype=np.float32) * step
    angle = np.outer(at, f).astype(np.float32)
    x, y = np.tile(angle, (side, 1)), np.repeat(angle, side, axis=0)
    both = np.concatenate([x, y], axis=1)
    return (np.cos(both) + 1j * np.sin(both)).astype(np.complex64)


def make_checkpoint(
    shapes: dict,
    seed: int,
    offsets: dict | None = None,
    tracker_offsets: dict | None = None,
    salts: dict | None = None,
    gains: list | None = None,
) -> dict:
    """shapes: full names (detector. / tracker.) -> {'shape': ..., 'dtype': ...}.

    offsets, salts, gains: as the tables OFFSETS, SALTS, GAINS above, in addition;
    names without the prefix.  gains: [substring, suffix, factor], applied on top.
    The tracker's neck (detector.backbone.vision_backbone.sam2_convs) follows the
    rules of the detector's neck under its own name.
    """
    offsets = {**OFFSETS, **(offsets or {})}
    tracker_offsets = {**TRACKER_OFFSETS, **(tracker_offsets or {})}
    out = {}
    for full, spec in shapes.items():
        part, name = full.split(".", 1)
        shape = tuple(int(s) for s in spec["shape"])
        if spec["dtype"].startswith("complex"):
            out[full] = rotary_table(shape)
            continue
        if part == "tracker":
            out[full] = _tracker_rule(name, shape, seed, tracker_offsets)
            continue
        saved = {k: SALTS.get(k) for k in (salts or {})}
        SALTS.update(salts or {})
        try:
            value = _rule(name, shape, seed, offsets)
        finally:
            for k, v in saved.items():
                SALTS.pop(k) if v is None else SALTS.__setitem__(k, v)
        for a, b, g in gains or []:
            if a in name and name.endswith(b):
                value = value * np.float32(g)
                break
        out[full] = value
    return out


def make_clip(num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """uint8 video [T, H, W, 3]: drifting gradients, moving shapes, faint grain (integers only)."""
    yy, xx = np.meshgrid(np.arange(height, dtype=np.int64), np.arange(width, dtype=np.int64), indexing="ij")
    s = max(1, min(height, width))
    r = uniform_int("clip.params", seed, 128, 0, 1 << 20)
    grain = (raw("clip.grain", seed, height * width) & np.uint64(7)).astype(np.int64)
    grain = grain.reshape(height, width) - 3
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        img = np.empty((height, width, 3), np.int64)
        for c in range(3):
            a, b = r[4 * c] % 5 - 2, r[4 * c + 1] % 5 - 2
            drift = (r[4 * c + 3] % 7 - 3) * t * max(1, s // 90)
            v = a * xx + b * yy + r[4 * c + 2] % (2 * s) + drift
            img[..., c] = 40 + triangle(v, s, 150) + triangle(yy + xx // 2 + 5 * t, s // 2, 40)
        for k in range(5):
            q = r[16 + 12 * k : 28 + 12 * k]
            size = s // 10 + q[0] % max(1, s // 7)
            span_x, span_y = width - 2 * size, height - 2 * size
            vx = (1 + q[1] % 3) * max(1, width // 80) * (1 if q[2] & 1 else -1)
            vy = (1 + q[3] % 3) * max(1, height // 80) * (1 if q[4] & 1 else -1)
            cx = size + int(triangle(np.int64(q[5] % span_x + vx * t), span_x, span_x))
            cy = size + int(triangle(np.int64(q[6] % span_y + vy * t), span_y, span_y))
            dx, dy = xx - cx, yy - cy
            if k % 4 == 0:
                inside = dx * dx + dy * dy <= size * size
            elif k % 4 == 1:
                inside = (np.abs(dx) <= size) & (np.abs(dy) <= (size * 2) // 3)
            elif k % 4 == 2:
                inside = np.abs(dx) + np.abs(dy) <= size
            else:
                d2 = dx * dx + dy * dy
                inside = (d2 <= size * size) & (d2 >= (size * size) // 3)
            colour = np.array([q[7] % 256, q[8] % 256, q[9] % 256], np.int64)
            shade = 1000 - (np.abs(dx) + np.abs(dy)) * 250 // max(1, size)
            img = np.where(inside[..., None], colour * shade[..., None] // 1000, img)
        frames[t] = np.clip(img + grain[..., None], 0, 255).astype(np.uint8)
    return frames
