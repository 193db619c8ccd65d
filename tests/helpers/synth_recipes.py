"""Rules of the synthetic weights (`helpers.synth`) of the three networks of the golden tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Recipe:
    """Rules of one network's weights, where they differ from fan-in scaling.

    `gains`          (substring, ending, factor) on top of fan-in scaling; the first match wins
    `free`           (substring, standard deviation, mean) of parameters that are not scaled by fan-in; first match wins
    `offsets`        bias name -> number to add
    `upsampling`     weights of the part that all sub-pixels of a transposed convolution share, and of the rest
    `antisymmetric`  (ending, axis) of weights whose halves get opposite signs
    """

    gains: tuple[tuple[str, str, float], ...]
    free: tuple[tuple[str, float, float], ...]
    offsets: Mapping[str, float] = field(default_factory=dict)
    upsampling: tuple[float, float] = (0.98, 0.2)
    antisymmetric: tuple[tuple[str, int], ...] = ()


_SAM_GAINS = (
    ("memory_attention.layers", "cross_attn_image.v_proj.weight", 1.5),
    ("memory_attention.layers", "cross_attn_image.out_proj.weight", 1.5),
    ("sam_mask_decoder.transformer", ".v_proj.weight", 1.2),
    ("output_hypernetworks_mlps", ".weight", 1.4),
    ("iou_prediction_head", ".weight", 1.4),
    ("pred_obj_score_head", ".weight", 1.4),
    ("obj_ptr_proj", ".weight", 1.4),
    # the fine maps are kept weaker than the 64x64 map, so that masks are smooth regions and not pixel noise
    ("sam_mask_decoder.conv_s0", ".weight", 0.4),
    ("sam_mask_decoder.conv_s1", ".weight", 0.5),
    ("image_encoder.neck", ".weight", 0.7),
)

_SAM_FREE = (
    ("trunk.pos_embed_window", 0.05, 0.0),
    ("trunk.pos_embed", 0.30, 0.0),
    ("positional_encoding_gaussian_matrix", 1.0, 0.0),
    ("maskmem_tpos_enc", 0.30, 0.0),
    ("no_mem_embed", 0.20, 0.0),
    ("no_mem_pos_enc", 0.20, 0.0),
    ("no_obj_ptr", 0.50, 0.0),
    ("not_a_point_embed.weight", 0.30, 0.0),
    ("no_mask_embed.weight", 0.20, 0.0),
    ("iou_token.weight", 0.50, 0.0),
    ("mask_tokens.weight", 0.50, 0.0),
    ("obj_score_token.weight", 0.50, 0.0),
)

SAMWISE = Recipe(
    gains=(
        # sharper attention, where a nearly uniform softmax over thousands of keys would average the signal away
        ("memory_attention.layers", "cross_attn_image.q_proj.weight", 2.0),
        ("memory_attention.layers", "cross_attn_image.k_proj.weight", 2.0),
        ("memory_attention.layers", "self_attn.q_proj.weight", 1.5),
        ("memory_attention.layers", "self_attn.k_proj.weight", 1.5),
        ("sam_mask_decoder.transformer", ".q_proj.weight", 1.5),
        ("sam_mask_decoder.transformer", ".k_proj.weight", 1.5),
        # the text token makes the mask depend on the sentence
        ("sam_prompt_encoder.project_text", ".weight", 1.5),
        ("sam_prompt_encoder.project_motion_prompts", ".weight", 1.5),
        ("proj_text_up", ".weight", 0.7),
        # decisions of the conditional memory encoder differ by a clear margin between frames
        ("conditional_memory_encoder", "decision_class_head.weight", 3.0),
        ("conditional_memory_encoder", "self_attn.out_proj.weight", 2.0),
        ("cmt_adapters", "ca_V2T.multihead_attn.out_proj.weight", 1.5),
        ("cmt_adapters", "ca_T2V.multihead_attn.out_proj.weight", 1.5),
        *_SAM_GAINS,
    ),
    free=(
        ("embed_tokens.weight", 0.10, 0.0),
        ("embed_positions.weight", 0.05, 0.0),
        ("spatial_pos_embed", 0.20, 0.0),
        ("decision_token.weight", 0.50, 0.0),
        ("point_embeddings", 0.30, 0.0),
        *_SAM_FREE,
    ),
    # the object is usually present
    offsets={"sam.sam_mask_decoder.pred_obj_score_head.layers.2.bias": 4.0},
)

SAM2 = Recipe(
    # queries and keys of memory attention keep plain scaling: sharp attention makes the recurrence chaotic, and
    # rounding errors would grow from frame to frame
    gains=(
        # mask logits of a few units, so that the stability test at +-0.05 goes both ways, and clearly different IoUs
        ("output_hypernetworks_mlps", "layers.2.weight", 5.0),
        ("iou_prediction_head", "layers.2.weight", 3.5),
        # a few pointer tokens among thousands of memory tokens have to show in the masks
        ("obj_ptr_proj", "layers.2.weight", 4.2),
        ("obj_ptr_tpos_proj", ".weight", 3.0),
        # the remembered mask shapes the memory, not only the remembered picture
        ("memory_encoder.mask_downsampler.encoder.12", ".weight", 3.0),
        ("memory_encoder.pix_feat_proj", ".weight", 0.5),
        *_SAM_GAINS,
    ),
    free=(
        # maps a 0/1 mask prompt to logits of about -10 and 10
        ("mask_downsample.weight", 0.25, 1.25),
        ("mask_downsample.bias", 0.05, -10.0),
        ("no_obj_embed_spatial", 0.50, 0.0),
        ("point_embeddings", 0.50, 0.0),
        *_SAM_FREE,
    ),
    offsets={"sam_mask_decoder.pred_obj_score_head.layers.2.bias": 4.0},
)

REFERSAM = Recipe(
    gains=(
        ("text_encoder", "attention.self.query.weight", 1.5),
        ("text_encoder", "attention.self.key.weight", 1.5),
        ("text_encoder", "self_attn.q_proj.weight", 1.5),
        ("text_encoder", "self_attn.k_proj.weight", 1.5),
        ("text_encoder", "self_attn.out_proj.weight", 0.7),
        ("text_encoder", "mlp.fc2.weight", 0.7),
        # the residual stream of the ViT stays at order one over 12 or 24 blocks
        ("vis_model.blocks", "attn.proj.weight", 0.6),
        ("vis_model.blocks", "mlp.lin2.weight", 0.6),
        # deformable attention: offsets of a few pixels, some points outside the map, uneven point weights
        ("", "attn.sampling_offsets.weight", 1.5),
        ("", "attn.attention_weights.weight", 1.5),
        ("", "attn.value_proj.weight", 1.2),
        ("", "attn.output_proj.weight", 1.5),
        # vision-language layers and prompter: attention that picks tokens
        ("vl_adapter.interactions", "cross_attn.q_proj.weight", 1.5),
        ("vl_adapter.interactions", "cross_attn.k_proj.weight", 1.5),
        ("vl_adapter.interactions", "cross_attn.out_proj.weight", 1.3),
        ("vl_adapter.prompt_blocks", "attn.q_proj.weight", 1.7),
        ("vl_adapter.prompt_blocks", "attn.k_proj.weight", 1.7),
        ("vl_adapter.prompt_blocks", "attn.out_proj.weight", 1.5),
        ("", "level_weights.weight", 1.5),
        # spatial prior: ReLU after group norm
        ("vl_adapter.spm.stem", ".weight", 1.4),
        ("vl_adapter.spm.conv", ".weight", 1.4),
        ("mask_embedding", ".weight", 1.3),
        ("sparse_embedding", ".weight", 1.3),
        ("sam_mask_decoder.transformer", ".q_proj.weight", 1.5),
        ("sam_mask_decoder.transformer", ".k_proj.weight", 1.5),
        ("sam_mask_decoder.transformer", ".v_proj.weight", 1.2),
        ("output_hypernetworks_mlps", ".weight", 1.8),
        ("iou_prediction_head", ".weight", 1.4),
        ("mask_downscaling.6", ".weight", 1.5),
    ),
    free=(
        ("embeddings.word_embeddings.weight", 0.30, 0.0),
        ("embeddings.position_embeddings.weight", 0.10, 0.0),
        ("embeddings.token_type_embeddings.weight", 0.10, 0.0),
        ("embeddings.token_embedding.weight", 0.30, 0.0),
        ("embeddings.position_embedding.weight", 0.10, 0.0),
        ("vis_model.pos_embed", 0.30, 0.0),
        ("attn.rel_pos_h", 0.12, 0.0),
        ("attn.rel_pos_w", 0.12, 0.0),
        ("level_embed", 0.70, 0.0),
        ("lang_prompts.weight", 0.70, 0.0),
        ("vl_adapter.sparse_prompts.weight", 0.70, 0.0),
        ("vl_adapter.prompt_pos.weight", 0.70, 0.0),
        ("injector.gamma", 0.10, 0.50),
        ("gamma_v2l", 0.10, 1.00),
        ("gamma_l2v", 0.10, 1.00),
        ("attn.sampling_offsets.bias", 2.00, 0.0),
        ("attn.attention_weights.bias", 0.30, 0.0),
        ("mask_scaling.weight", 0.10, 1.00),
        ("mask_scaling.bias", 1.00, 0.00),
        ("positional_encoding_gaussian_matrix", 1.0, 0.0),
        ("not_a_point_embed.weight", 0.30, 0.0),
        ("point_embeddings", 0.30, 0.0),
        ("no_mask_embed.weight", 0.20, 0.0),
        ("iou_token.weight", 0.50, 0.0),
        ("mask_tokens.weight", 0.50, 0.0),
    ),
    upsampling=(1.0, 0.06),
    # the positive mean of a GELU does not push all logits of the mask path to one side
    antisymmetric=(
        ("vl_adapter.out_conv.3.weight", 1),
        ("output_upscaling.3.weight", 0),
        ("output_hypernetworks_mlps.0.layers.2.weight", 0),
    ),
)
