"""A small SAM 2 checkpoint in Hugging Face's layout: config.json and model.safetensors."""

import json
import struct


def config():
    """Content of config.json: the fields that the export reads."""
    trunk = {
        "hidden_size": 16,
        "blocks_per_stage": [1, 2, 2, 1],
        "num_attention_heads": 1,
        "global_attention_blocks": [4],
        "window_size_per_stage": [8, 4, 6, 4],
        "window_positional_embedding_background_size": [7, 7],
    }
    return {
        "vision_config": {"backbone_config": trunk},
        "image_size": 128,
        "memory_attention_num_layers": 2,
        "mask_decoder_config": {"num_hidden_layers": 2, "num_attention_heads": 4},
        "memory_fuser_num_layers": 2,
    }


def safetensors(tensors):
    """Bytes of a safetensors file with these torch tensors as float32."""
    header, body = {}, b""
    for name, value in tensors.items():
        raw = value.float().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body
