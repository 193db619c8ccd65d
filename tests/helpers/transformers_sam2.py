"""A small SAM 2 in `transformers`, with every part of the published ones."""

import transformers

SIZE = 128


def config(new: bool = True, size: int = SIZE):
    """Configuration of SAM 2.1 if `new`, else of SAM 2."""
    trunk = {
        "hidden_size": 16,
        "blocks_per_stage": [1, 2, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads": 1,
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "global_attention_blocks": [4],
        "window_size_per_stage": [8, 4, 6, 4],
        "image_size": [size, size],
        "window_positional_embedding_background_size": [7, 7],
    }
    vision = {
        "backbone_config": {"model_type": "sam2_hiera_det_model", **trunk},
        "fpn_hidden_size": 128,
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[size // s, size // s] for s in (4, 8, 16)],
    }
    return transformers.Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 128, "image_size": size, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 96, "num_attention_heads": 4, "iou_head_hidden_dim": 48},
        image_size=size,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=2,
        memory_encoder_hidden_size=128,
        memory_attention_feed_forward_hidden_size=96,
        memory_attention_rope_feat_sizes=[size // 16] * 2,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=512,
        enable_occlusion_spatial_embedding=new,
        enable_temporal_pos_encoding_for_object_pointers=new,
    )
